package channel

// AttachMemory attaches memory that nobody verified.
func (c *Channel) AttachMemory(mem []byte) {
	c.section = layOut(mem)
	close(c.ready)
}

// EncodeHeader and DecodeHeader are the codec.
func EncodeHeader(h *Header) (b [HeaderLen]byte) {
	h.encode(&b)
	return b
}

// DecodeHeader checks b.
func DecodeHeader(b *[HeaderLen]byte) (h Header, err error) {
	err = h.decode(b)
	return h, err
}

// The channel's own types.
const (
	ShiftUp   = shiftUp
	ShiftDown = shiftDown
	OnSocket  = onSocket
)
