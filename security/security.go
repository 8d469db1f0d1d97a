// Package security decides who somebody is and whether they may: SIDs, access masks, descriptors with their text and binary forms,
// conditions and claims, tokens, the access check and inheritance. It follows MS-DTYP (the chapter numbers are in the comments);
// docs/security-model.md says where each chapter is, and what was decided where the document leaves a choice.
//
// Everything here is a value. There is no system call, no I/O, no clock and no lock: the caller says what time it is and hands
// in the LUIDs. Values are safe for concurrent use as long as nobody writes them; a Descriptor or a Token that has been
// shared is immutable by convention, and who wants another one takes Clone.
//
// Text and bytes are hostile: a parser bounds its input before it reads, runs in linear time, never recurses and never panics, and
// says at which byte it stopped and what it expected there (SyntaxError, FormatError). A descriptor or token that breaks a rule is
// refused, never read generously: what this package does not know denies.
package security
