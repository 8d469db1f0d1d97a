package security

import "fmt"

// LUID is a locally unique identifier: of a token, a logon session, a modification. The core hands them out, none twice in one boot.
type LUID uint64

// The logon sessions that exist before anybody has logged on (NT's numbers).
const (
	SystemLUID         LUID = 0x3e7
	AnonymousLUID      LUID = 0x3e6
	LocalServiceLUID   LUID = 0x3e5
	NetworkServiceLUID LUID = 0x3e4
)

// String is NT's debugger form, high:low in hexadecimal.
func (l LUID) String() string { return fmt.Sprintf("%x:%x", uint32(l>>32), uint32(l)) }
