package rpc

import (
	"context"

	"google.golang.org/grpc"

	"sallyport/alpc"
	"sallyport/security"
)

// asToken is whom a call is made as, and the key of its security context on a connection.
type asToken struct {
	grpc.EmptyCallOption
	token security.LUID
	qos   alpc.QualityOfService
}

// AsToken makes a call in another's name: under a token that the caller's System holds with TOKEN_IMPERSONATE, or its own
// to a level of its choice. The server's access checks and Caller see that token. Each connection registers it with
// the core once, at the first call that needs it; Forget ends that. Without qos.Dynamic the server sees the token as it was then.
func AsToken(token security.LUID, qos alpc.QualityOfService) grpc.CallOption {
	return asToken{token: token, qos: qos}
}

// Forget ends the security contexts of a token on the connection that there is now, as when the one it stands for has
// gone: calls under it that the server has not received are refused.
func (c *Conn) Forget(ctx context.Context, token security.LUID) error {
	p := c.current.Load()
	if p == nil {
		return nil
	}
	p.mu.Lock()
	var ids []uint32
	for key, id := range p.speaks {
		if key.token == token {
			ids = append(ids, id)
			delete(p.speaks, key)
		}
	}
	p.mu.Unlock()
	for _, id := range ids {
		if err := p.port.DeleteSecurityContext(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// under finds or registers the security context of a call; 0 is the connection's own.
func (p *clientPort) under(ctx context.Context, as *asToken) (uint32, error) {
	if as == nil {
		return 0, nil
	}
	p.mu.Lock()
	id := p.speaks[*as]
	p.mu.Unlock()
	if id != 0 {
		return id, nil
	}
	made, err := p.port.CreateSecurityContext(ctx, as.token, as.qos)
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	id = p.speaks[*as]
	if id == 0 {
		if p.speaks == nil {
			p.speaks = map[asToken]uint32{}
		}
		p.speaks[*as] = made.ID
	}
	p.mu.Unlock()
	if id == 0 {
		return made.ID, nil
	}
	return id, p.port.DeleteSecurityContext(ctx, made.ID) // another call was quicker
}
