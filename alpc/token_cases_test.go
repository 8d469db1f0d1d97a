package alpc_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"sallyport/alpc"
	"sallyport/alpc/alpctest"
	"sallyport/ntstatus"
	"sallyport/security"
)

// tokenCases are the published token cases by id, each done with this system's calls. A case that needs what is not here (a thread with a
// token of its own: impersonation is a value, or a function on a thread of the library's) says so.
func tokenCases() map[string]func(t *testing.T, s *alpc.System, own *security.Token) {
	lacks := func(what string) func(*testing.T, *alpc.System, *security.Token) {
		return func(t *testing.T, _ *alpc.System, _ *security.Token) { t.Skip("there is no such thing here: ", what) }
	}
	duplicate := func(t *testing.T, s *alpc.System, id security.LUID, d alpc.TokenDuplicate) *security.Token {
		made, err := s.DuplicateToken(alpctest.Context(t), id, d)
		require.NoError(t, err)
		return made
	}
	level := func(t *testing.T, s *alpc.System, own *security.Token, l security.ImpersonationLevel) *security.Token {
		return duplicate(t, s, own.TokenID, alpc.TokenDuplicate{Type: security.TokenImpersonation, Level: l})
	}
	object := &security.Descriptor{Owner: security.LocalSystem(), Group: security.LocalSystem(), DACL: security.NewACL(security.Allow(security.Everyone(), 1))}
	open := func(token *security.Token) ntstatus.Status {
		return security.AccessCheck(security.CheckRequest{Descriptor: object, Token: token, Desired: 1, Mapping: alpc.PortMapping(), Mode: security.CheckOpen}).Status
	}
	return map[string]func(t *testing.T, s *alpc.System, own *security.Token){
		"compare-02": func(t *testing.T, s *alpc.System, own *security.Token) {
			require.True(t, own.Equal(level(t, s, own, security.LevelIdentification)))
		},
		"duplicate-01": func(t *testing.T, s *alpc.System, own *security.Token) {
			adjusted, err := s.AdjustPrivileges(alpctest.Context(t), own.TokenID, security.TokenPrivilege{Privilege: security.SeImpersonate})
			require.NoError(t, err)
			require.False(t, adjusted.NotAllAssigned)
			effective := duplicate(t, s, own.TokenID, alpc.TokenDuplicate{Type: security.TokenPrimary, EffectiveOnly: true})
			require.Len(t, effective.Privileges, len(own.Privileges)-1)
			require.False(t, effective.Has(security.SeImpersonate))
		},
		"level-01": func(t *testing.T, s *alpc.System, own *security.Token) {
			_, err := s.OpenToken(alpctest.Context(t), level(t, s, own, security.LevelAnonymous).TokenID, security.AccessMask(0x8))
			require.ErrorIs(t, err, ntstatus.CantOpenAnonymous)
		},
		"level-03": func(t *testing.T, s *alpc.System, own *security.Token) {
			_, err := level(t, s, own, security.LevelAnonymous).CheckPrivileges(false, security.SeImpersonate)
			require.ErrorIs(t, err, ntstatus.BadImpersonationLevel)
		},
		"level-05": func(t *testing.T, s *alpc.System, own *security.Token) {
			token := level(t, s, own, security.LevelImpersonation)
			require.Equal(t, ntstatus.Success, open(token))
			held, err := token.CheckPrivileges(false, security.SeImpersonate)
			require.NoError(t, err)
			require.True(t, held)
			require.Equal(t, ntstatus.BadImpersonationLevel, open(level(t, s, own, security.LevelIdentification)), "and at Identification only the question")
		},
		"anonymous-01": lacks("a thread's handle"),
		"anonymous-02": lacks("a thread that impersonates until it reverts"),
		"anonymous-03": lacks("a thread's handle"),
		"filter-04": func(t *testing.T, s *alpc.System, own *security.Token) {
			filtered, err := s.FilterToken(alpctest.Context(t), own.TokenID, security.FilterOptions{Delete: []security.Privilege{security.SeBackup}})
			require.NoError(t, err)
			require.Len(t, filtered.Privileges, len(own.Privileges)-1)
		},
		"filter-07": func(t *testing.T, s *alpc.System, own *security.Token) {
			dialup, err := security.ParseSID("S-1-5-1")
			require.NoError(t, err)
			filtered, err := s.FilterToken(alpctest.Context(t), own.TokenID, security.FilterOptions{Restrict: []security.SID{dialup}})
			require.NoError(t, err)
			require.Len(t, filtered.Restricted, 1)
		},
		"sdctl-01": func(t *testing.T, _ *alpc.System, _ *security.Token) {
			var d security.Descriptor
			for _, bits := range []security.Control{0x0100, 0x0200, 0x0400, 0x0800, 0x1000, 0x2000, 0x40, 0x80} {
				require.NoError(t, d.SetControl(bits, bits))
			}
			for _, bits := range []security.Control{0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x4000, 0x8000} {
				before := d.Control
				require.ErrorIs(t, d.SetControl(bits, bits), ntstatus.InvalidParameter)
				require.Equal(t, before, d.Control)
			}
		},
	}
}

// TestTokenCases does each of them; none needs the published file.
func TestTokenCases(t *testing.T) {
	for id, do := range tokenCases() {
		t.Run(id, func(t *testing.T) {
			s := alpctest.Start(t).Attach(t, nil)
			do(t, s, s.Token())
		})
	}
}

// TestPublishedTokenCasesAreKnown compares the ids with the folder that SALLYPORT_CASES names.
func TestPublishedTokenCasesAreKnown(t *testing.T) {
	folder := os.Getenv("SALLYPORT_CASES")
	if folder == "" {
		t.Skip("SALLYPORT_CASES names no folder with the published cases")
	}
	text, err := os.ReadFile(filepath.Join(folder, "token_behaviour.json"))
	require.NoError(t, err)
	var file struct{ Cases []struct{ ID, Title string } }
	require.NoError(t, json.Unmarshal(text, &file))
	known := tokenCases()
	for _, c := range file.Cases {
		require.Contains(t, known, c.ID, c.Title)
	}
	t.Logf("token_behaviour %d of %d known", len(file.Cases), len(file.Cases))
}
