package security

// alias is a two-letter name that SDDL has for a SID (MS-DTYP 2.5.1.1, sid-token). A relative one names an account of the
// domain at hand.
type alias struct {
	name     [2]byte
	sid      SID    // zero: relative
	relative uint32 // RID in the domain
}

// aliasTable is never written. Aliases are unique in both directions.
var aliasTable = [...]alias{
	{name: [2]byte{'W', 'D'}, sid: Everyone()},
	{name: [2]byte{'C', 'O'}, sid: CreatorOwner()},
	{name: [2]byte{'C', 'G'}, sid: CreatorGroup()},
	{name: [2]byte{'O', 'W'}, sid: OwnerRights()},
	{name: [2]byte{'N', 'U'}, sid: Network()},
	{name: [2]byte{'I', 'U'}, sid: Interactive()},
	{name: [2]byte{'S', 'U'}, sid: Service()},
	{name: [2]byte{'A', 'N'}, sid: Anonymous()},
	{name: [2]byte{'E', 'D'}, sid: makeSID(authorityNT, 9)},
	{name: [2]byte{'P', 'S'}, sid: PrincipalSelf()},
	{name: [2]byte{'A', 'U'}, sid: AuthenticatedUsers()},
	{name: [2]byte{'R', 'C'}, sid: RestrictedCode()},
	{name: [2]byte{'S', 'Y'}, sid: LocalSystem()},
	{name: [2]byte{'L', 'S'}, sid: LocalService()},
	{name: [2]byte{'N', 'S'}, sid: NetworkService()},
	{name: [2]byte{'W', 'R'}, sid: WriteRestricted()},
	{name: [2]byte{'U', 'D'}, sid: makeSID(authorityNT, 84, 0, 0, 0, 0, 0)},
	{name: [2]byte{'B', 'A'}, sid: Administrators()},
	{name: [2]byte{'B', 'U'}, sid: Users()},
	{name: [2]byte{'B', 'G'}, sid: Guests()},
	{name: [2]byte{'P', 'U'}, sid: makeSID(authorityNT, 32, 547)},
	{name: [2]byte{'A', 'O'}, sid: makeSID(authorityNT, 32, 548)},
	{name: [2]byte{'S', 'O'}, sid: makeSID(authorityNT, 32, 549)},
	{name: [2]byte{'P', 'O'}, sid: makeSID(authorityNT, 32, 550)},
	{name: [2]byte{'B', 'O'}, sid: BackupOperators()},
	{name: [2]byte{'R', 'E'}, sid: makeSID(authorityNT, 32, 552)},
	{name: [2]byte{'R', 'U'}, sid: makeSID(authorityNT, 32, 554)},
	{name: [2]byte{'R', 'D'}, sid: makeSID(authorityNT, 32, 555)},
	{name: [2]byte{'N', 'O'}, sid: makeSID(authorityNT, 32, 556)},
	{name: [2]byte{'M', 'U'}, sid: makeSID(authorityNT, 32, 558)},
	{name: [2]byte{'L', 'U'}, sid: makeSID(authorityNT, 32, 559)},
	{name: [2]byte{'I', 'S'}, sid: makeSID(authorityNT, 32, 568)},
	{name: [2]byte{'C', 'Y'}, sid: makeSID(authorityNT, 32, 569)},
	{name: [2]byte{'E', 'R'}, sid: makeSID(authorityNT, 32, 573)},
	{name: [2]byte{'C', 'D'}, sid: makeSID(authorityNT, 32, 574)},
	{name: [2]byte{'R', 'A'}, sid: makeSID(authorityNT, 32, 575)},
	{name: [2]byte{'E', 'S'}, sid: makeSID(authorityNT, 32, 576)},
	{name: [2]byte{'M', 'S'}, sid: makeSID(authorityNT, 32, 577)},
	{name: [2]byte{'H', 'A'}, sid: makeSID(authorityNT, 32, 578)},
	{name: [2]byte{'A', 'A'}, sid: makeSID(authorityNT, 32, 579)},
	{name: [2]byte{'R', 'M'}, sid: makeSID(authorityNT, 32, 580)},
	{name: [2]byte{'H', 'O'}, sid: makeSID(authorityNT, 32, 584)},
	{name: [2]byte{'A', 'C'}, sid: AllAppPackages()},
	{name: [2]byte{'L', 'W'}, sid: IntegrityLow()},
	{name: [2]byte{'M', 'E'}, sid: IntegrityMedium()},
	{name: [2]byte{'M', 'P'}, sid: IntegrityMediumPlus()},
	{name: [2]byte{'H', 'I'}, sid: IntegrityHigh()},
	{name: [2]byte{'S', 'I'}, sid: IntegritySystem()},
	{name: [2]byte{'A', 'S'}, sid: makeSID(authorityAssertion, 1)},
	{name: [2]byte{'S', 'S'}, sid: makeSID(authorityAssertion, 2)},
	{name: [2]byte{'R', 'O'}, relative: 498},
	{name: [2]byte{'L', 'A'}, relative: 500},
	{name: [2]byte{'L', 'G'}, relative: 501},
	{name: [2]byte{'D', 'A'}, relative: 512},
	{name: [2]byte{'D', 'U'}, relative: 513},
	{name: [2]byte{'D', 'G'}, relative: 514},
	{name: [2]byte{'D', 'C'}, relative: 515},
	{name: [2]byte{'D', 'D'}, relative: 516},
	{name: [2]byte{'C', 'A'}, relative: 517},
	{name: [2]byte{'S', 'A'}, relative: 518},
	{name: [2]byte{'E', 'A'}, relative: 519},
	{name: [2]byte{'P', 'A'}, relative: 520},
	{name: [2]byte{'C', 'N'}, relative: 522},
	{name: [2]byte{'A', 'P'}, relative: 525},
	{name: [2]byte{'K', 'A'}, relative: 526},
	{name: [2]byte{'E', 'K'}, relative: 527},
	{name: [2]byte{'R', 'S'}, relative: 553},
}

// in resolves a to its SID; the zero SID where a is relative and domain is zero.
func (a *alias) in(domain SID) SID {
	if a.relative != 0 {
		return domain.WithRID(a.relative)
	}
	return a.sid
}

// appendSID appends s as SDDL writes it: by alias where it has one.
func appendSID(b []byte, s, domain SID) []byte {
	rid, relative := s.RID(), !domain.IsZero() && s.Domain() == domain
	for i := range aliasTable {
		if a := &aliasTable[i]; a.relative == 0 && a.sid.same(&s) || relative && a.relative != 0 && a.relative == rid {
			return append(b, a.name[:]...)
		}
	}
	return s.append(b)
}

// findAlias looks a two-letter name up, in either case.
func findAlias(c0, c1 byte) *alias {
	name := [2]byte{upper(c0), upper(c1)}
	for i := range aliasTable {
		if aliasTable[i].name == name {
			return &aliasTable[i]
		}
	}
	return nil
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'z' {
		c -= 'a' - 'A'
	}
	return c
}
