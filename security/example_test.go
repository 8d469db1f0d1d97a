package security_test

import (
	"fmt"

	"sallyport/security"
)

// A printer that its administrators own, that users may print on, and that guests may not.
func Example() {
	rights := security.RightNames{{Name: "PRINT", Mask: 0x1}, {Name: "PAUSE", Mask: 0x2}}
	printer, err := security.ParseSDDL("O:BAG:BAD:(D;;0x1;;;BG)(A;;0x3;;;BA)(A;;0x1;;;BU)")
	if err != nil {
		fmt.Println(err)
		return
	}
	bob := &security.Token{
		Type:   security.TokenPrimary,
		User:   security.Group{SID: security.UnixUser(1000)},
		Groups: []security.Group{{SID: security.Users(), Attributes: security.GroupDefault}},
	}
	for _, desired := range []security.AccessMask{0x1, 0x3} {
		d := security.AccessCheck(security.CheckRequest{Descriptor: printer, Token: bob, Desired: desired, Rights: rights})
		fmt.Println(d.Allowed(), d)
	}
	// Output:
	// true granted PRINT (0x1): entry 2 of the DACL (A;;CC;;;BU) grants PRINT (0x1)
	// false access denied, PAUSE (0x2) missing: no entry grants PAUSE (0x2)
}

func ExampleParseSDDL() {
	_, err := security.ParseSDDL("D:(A;;GA;;;SY)(A;;GZ;;;BA)")
	fmt.Println(err)
	// Output:
	// security.ParseSDDL: the access control list is not valid: at byte 18: expected access rights (two-letter words or a number of 32 bits), found "GZ;;;BA)"
}
