package alpc

// PairOptions describe one of the two ends that Pair makes.
type PairOptions struct {
	Peer             *Client // what this end says its peer is; nil: this process, without a token
	MaxMessageLength int     // 0: MaxMessageLength
	MaxPending       int     // 0: the default
	HandleTypes      HandleType
	ConnectData      []byte
}

func Pair(a, b PairOptions) (*Port, *Port, error) { panic(0) }
