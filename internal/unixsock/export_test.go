package unixsock

// ParseControl reads a control block.
func ParseControl(block []byte) ([]int, Ucred) { return parseControl(block) }
