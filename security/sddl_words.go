package security

// The words of SDDL (MS-DTYP 2.5.1.1), shared by the parser and the formatter. The tables are never written; where a value has
// several words, the first is the one that is written.

type typeWord struct {
	word string
	typ  ACEType
}

var typeWords = [...]typeWord{
	{"A", AccessAllowed}, {"D", AccessDenied}, {"AU", SystemAudit}, {"AL", SystemAlarm},
	{"OA", AccessAllowedObject}, {"OD", AccessDeniedObject}, {"OU", SystemAuditObject}, {"OL", SystemAlarmObject},
	{"XA", AccessAllowedCallback}, {"XD", AccessDeniedCallback}, {"XU", SystemAuditCallback}, {"ZA", AccessAllowedCallbackObject},
	{"ML", MandatoryLabel}, {"RA", ResourceAttribute}, {"SP", ScopedPolicyID}, {"TL", ProcessTrustLabel}, {"FL", AccessFilter},
}

type flagWord struct {
	word string
	flag ACEFlags
}

// flagWords are in the order in which Windows writes them.
var flagWords = [...]flagWord{
	{"OI", ObjectInherit}, {"CI", ContainerInherit}, {"NP", NoPropagateInherit}, {"IO", InheritOnly}, {"ID", InheritedACE},
	{"CR", CriticalACE}, {"SA", SuccessfulAccess}, {"FA", FailedAccess},
	// Of an access filter: who is below the object's trust label may not change it. The bit is that of SA.
	{"TP", SuccessfulAccess},
}

type rightWord struct {
	word string
	mask AccessMask
}

// bitWords are the single rights, in the order in which Windows writes them; a mask is written in letters if these cover it.
var bitWords = [...]rightWord{
	{"CC", 0x001}, {"DC", 0x002}, {"LC", 0x004}, {"SW", 0x008}, {"RP", 0x010}, {"WP", 0x020}, {"DT", 0x040}, {"LO", 0x080}, {"CR", 0x100},
	{"SD", Delete}, {"RC", ReadControl}, {"WD", WriteDAC}, {"WO", WriteOwner},
	{"GA", GenericAll}, {"GX", GenericExecute}, {"GW", GenericWrite}, {"GR", GenericRead},
}

// wholeWords stand for a whole mask and are written only where it is exactly that: files, then registry keys.
var wholeWords = [...]rightWord{
	{"FA", 0x1f01ff}, {"FR", 0x120089}, {"FW", 0x120116}, {"FX", 0x1200a0},
	{"KA", 0xf003f}, {"KR", 0x20019}, {"KW", 0x20006}, {"KX", 0x20019},
}

// labelWords are the rights of a MandatoryLabel.
var labelWords = [...]rightWord{{"NW", NoWriteUp}, {"NR", NoReadUp}, {"NX", NoExecuteUp}}

type controlWord struct {
	word       string
	dacl, sacl Control
}

// controlWords are in the order in which Windows writes them. AR begins with the same letter as AI.
var controlWords = [...]controlWord{
	{"P", DACLProtected, SACLProtected}, {"AR", DACLAutoInheritReq, SACLAutoInheritReq}, {"AI", DACLAutoInherited, SACLAutoInherited},
}

const nullACL = "NO_ACCESS_CONTROL"
