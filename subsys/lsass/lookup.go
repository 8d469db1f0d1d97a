package lsass

import (
	"context"
	"errors"

	"sallyport/ntstatus"
	"sallyport/proto/lsapb"
	"sallyport/security"
	"sallyport/subsys/lsass/internal/principal"
)

// maxLookups is NT's bound on one call.
const maxLookups = 1000

// LookupNames is LsarLookupNames.
func (s *service) LookupNames(_ context.Context, req *lsapb.LookupNamesRequest) (*lsapb.LookupResponse, error) {
	return lookup("lsa.LookupNames", req.Names, func(name string) (principal.Entry, bool, error) { return s.byName(name) })
}

// LookupSIDs is LsarLookupSids. What it can't name it returns by its SID, as what can't be a SID.
func (s *service) LookupSIDs(_ context.Context, req *lsapb.LookupSIDsRequest) (*lsapb.LookupResponse, error) {
	return lookup("lsa.LookupSIDs", req.Sids, func(text string) (principal.Entry, bool, error) {
		sid, err := security.ParseSID(text)
		if err != nil {
			return principal.Entry{Use: lsapb.NameUse_NAME_USE_INVALID}, false, nil
		}
		e, ok, err := s.bySID(sid)
		if !ok {
			e = principal.Entry{SID: sid}
		}
		return e, ok, err
	})
}

func lookup(op string, asked []string, find func(string) (principal.Entry, bool, error)) (*lsapb.LookupResponse, error) {
	if len(asked) > maxLookups {
		return nil, ntstatus.Errorf(op, "", ntstatus.InvalidParameter, "%d items of at most %d", len(asked), maxLookups)
	}
	response, mapped := &lsapb.LookupResponse{}, 0
	for _, a := range asked {
		e, ok, err := find(a)
		if err != nil {
			return nil, ntstatus.Wrap(op, a, err)
		}
		item := &lsapb.Lookup{Domain: e.Domain, Name: e.Name, Use: e.Use}
		if !e.SID.IsZero() {
			item.Sid = e.SID.String()
		}
		if ok {
			mapped++
		} else if item.Use == lsapb.NameUse_NAME_USE_UNSPECIFIED {
			item.Use = lsapb.NameUse_NAME_USE_UNKNOWN
		}
		response.Items = append(response.Items, item)
	}
	switch {
	case mapped == len(asked):
	case mapped == 0:
		response.Status = uint32(ntstatus.NoneMapped)
	default:
		response.Status = uint32(ntstatus.SomeNotMapped)
	}
	return response, nil
}

// byName resolves a name. One without a domain is a well-known one if it can be, else an account; the empty name is the account
// domain itself.
func (s *service) byName(name string) (principal.Entry, bool, error) {
	sid, own := s.accounts.Domain()
	domain, account := principal.Split(name)
	isOwn := domain == "." || principal.Equal(domain, own)
	switch {
	case name == "", isOwn && account == "", domain == "" && principal.Equal(account, own):
		return principal.Entry{SID: sid, Domain: own, Use: lsapb.NameUse_NAME_USE_DOMAIN}, true, nil
	case !isOwn:
		if e, ok := principal.ByName(domain, account); ok || domain != "" {
			return e, ok, nil
		}
	case principal.Equal(account, noneName):
		return principal.Entry{SID: sid.WithRID(ridNone), Domain: own, Name: noneName, Use: lsapb.NameUse_NAME_USE_GROUP}, true, nil
	}
	a, err := s.accounts.Account(account)
	if errors.Is(err, ntstatus.NoSuchUser) {
		return principal.Entry{}, false, nil
	}
	return principal.Entry{SID: sid.WithRID(a.RID), Domain: own, Name: a.Name, Use: lsapb.NameUse_NAME_USE_USER}, err == nil, err
}

// bySID resolves a SID.
func (s *service) bySID(sid security.SID) (principal.Entry, bool, error) {
	domain, own := s.accounts.Domain()
	switch sid {
	case domain:
		return principal.Entry{SID: sid, Domain: own, Use: lsapb.NameUse_NAME_USE_DOMAIN}, true, nil
	case domain.WithRID(ridNone):
		return principal.Entry{SID: sid, Domain: own, Name: noneName, Use: lsapb.NameUse_NAME_USE_GROUP}, true, nil
	}
	if e, ok := principal.BySID(sid); ok {
		return e, true, nil
	}
	if principal.IsService(sid) {
		name, ok, err := s.accounts.ServiceName(sid)
		return principal.Entry{SID: sid, Domain: principal.NTService, Name: name, Use: lsapb.NameUse_NAME_USE_WELL_KNOWN_GROUP}, ok, err
	}
	a, ok, err := s.accounts.BySID(sid)
	return principal.Entry{SID: sid, Domain: own, Name: a.Name, Use: lsapb.NameUse_NAME_USE_USER}, ok, err
}

// nameOf is the name of a SID for people: the SID itself where it has none.
func (s *service) nameOf(sid security.SID) string {
	if e, ok, err := s.bySID(sid); ok && err == nil {
		return e.String()
	}
	return sid.String()
}

// The primary group of accounts on a machine of its own (MS-SAMR 2.2.1.14: domain users).
const (
	ridNone  = 513
	noneName = "None"
)
