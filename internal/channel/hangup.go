package channel

// Hangup ends the socket for both sides, as the core does in a dead peer's name: what was sent before is still received,
// then the end. It may come from anywhere, more than once.
func (c *Channel) Hangup() { c.conn.Shutdown() }
