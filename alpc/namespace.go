package alpc

import (
	"context"
	"strconv"

	"sallyport/proto/corepb"
)

// CreateDirectory makes a directory (NtCreateDirectoryObject). The descriptor, in SDDL, says who may make what in it: names are
// reserved by it before their servers run. Statuses: AccessDenied, ObjectNameCollision, ObjectPathNotFound, QuotaExceeded.
func (s *System) CreateDirectory(ctx context.Context, name, sddl string) error {
	_, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_CreateDirectory{CreateDirectory: &corepb.CreateDirectory{Name: name, SecurityDescriptor: sddl}}})
	return err
}

// CreateSymbolicLink makes a link to an absolute name (NtCreateSymbolicLinkObject): administrators only, or
// SeCreateSymbolicLink, since links redirect others.
func (s *System) CreateSymbolicLink(ctx context.Context, name, target, sddl string) error {
	_, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_CreateSymbolicLink{CreateSymbolicLink: &corepb.CreateSymbolicLink{Name: name, Target: target, SecurityDescriptor: sddl}}})
	return err
}

// Remove takes a name away: an empty directory, a link, or a declared port. Only who declared a port can take it from a server
// that has it; its connections end. It needs DELETE on the object.
func (s *System) Remove(ctx context.Context, name string) error {
	_, err := s.ask(ctx, &corepb.ToCore{Request: &corepb.ToCore_Remove{Remove: &corepb.Remove{Name: name}}})
	return err
}

func decimal(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}
