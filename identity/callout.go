package identity

import (
	"cmp"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// CalloutSubject is where the engine asks who a client is.
const CalloutSubject = "$SYS.REQ.USER.AUTH"

// calloutAuthorization makes the engine ask the callout's user about everybody
// else who comes into the callout's account.
func (a *Authority) calloutAuthorization() (jwt.ExternalAuthorization, error) {
	service, err := a.calloutUser()
	if err != nil {
		return jwt.ExternalAuthorization{}, err
	}
	key, err := a.calloutCurve()
	return jwt.ExternalAuthorization{
		AuthUsers:       jwt.StringList{service.public},
		AllowedAccounts: jwt.StringList{jwt.AnyAccount},
		XKey:            key.public,
	}, err
}

func (a *Authority) calloutUser() (keyPair, error) {
	return a.engine.derive(nkeys.PrefixByteUser, "callout/service")
}

func (a *Authority) calloutCurve() (keyPair, error) {
	return a.engine.derive(nkeys.PrefixByteCurve, "callout/curve")
}

// CalloutKey is the curve key that the engine encrypts its questions to.
func (a *Authority) CalloutKey() (nkeys.KeyPair, error) {
	key, err := a.calloutCurve()
	return key.KeyPair, err
}

// Sentinel is the JWT that the engine takes for a client that brought none: a
// bearer of the callout's account who may do nothing and never expires. It is
// public.
func (a *Authority) Sentinel() (string, error) {
	key, err := a.engine.derive(nkeys.PrefixByteUser, "callout/sentinel")
	if err != nil {
		return "", fmt.Errorf("signing the sentinel: %w", err)
	}
	claims := jwt.NewUserClaims(key.public)
	claims.Name = "sentinel"
	claims.BearerToken = true
	claims.Permissions = enginePermissions(Permissions{})
	return a.signCallout(claims)
}

// CalloutService returns the credentials with which a node answers the engine's
// questions. They are good for connections within a server only.
func (a *Authority) CalloutService() (token string, key nkeys.KeyPair, err error) {
	user, err := a.calloutUser()
	if err != nil {
		return "", nil, fmt.Errorf("signing the callout's service: %w", err)
	}
	claims := jwt.NewUserClaims(user.public)
	claims.Name = "service"
	claims.AllowedConnectionTypes = jwt.StringList{jwt.ConnectionTypeInProcess}
	claims.Permissions = enginePermissions(Permissions{
		Subscribe: Rule{Allow: []string{CalloutSubject}},
		Replies:   &Replies{Max: 1, For: time.Minute},
	})
	token, err = a.signCallout(claims)
	return token, user.KeyPair, err
}

func (a *Authority) signCallout(claims *jwt.UserClaims) (string, error) {
	token, err := a.signSession(Account{ID: a.own(calloutID)}, claims, time.Now())
	if err != nil {
		return "", fmt.Errorf("signing the callout's %s: %w", claims.Name, err)
	}
	return token, nil
}

// OpenCallout reads one of the engine's questions. server is the engine's public
// curve nkey, from the message's header Nats-Server-Xkey.
func (a *Authority) OpenCallout(data []byte, server string) (*jwt.AuthorizationRequestClaims, error) {
	key, err := a.CalloutKey()
	if err != nil {
		return nil, err
	}
	opened, err := key.Open(data, server)
	if err != nil {
		return nil, fmt.Errorf("opening a callout request: %w", err)
	}
	req, err := jwt.DecodeAuthorizationRequestClaims(string(opened))
	if err != nil {
		return nil, fmt.Errorf("decoding a callout request: %w", err)
	}
	var problems jwt.ValidationResults
	req.Validate(&problems)
	if !problems.IsEmpty() {
		return nil, fmt.Errorf("checking a callout request: %w", problems.Issues[0])
	}
	return req, nil
}

// CalloutResponse answers that the client of req is p, in the account target.
// It tells no secret: what it holds is bound to a key that only the engine has.
func (a *Authority) CalloutResponse(req *jwt.AuthorizationRequestClaims, target Account, p Principal, now time.Time) (string, error) {
	session, err := a.SessionJWT(target, p, req.UserNkey, false, now)
	if err != nil {
		return "", fmt.Errorf("answering a callout: %w", err)
	}
	return a.signResponse(req, jwt.AuthorizationResponse{Jwt: session}, now)
}

// CalloutRefusal answers that the client of req is refused. The engine logs
// reason and does not show it to the client; empty is "unauthorized".
func (a *Authority) CalloutRefusal(req *jwt.AuthorizationRequestClaims, reason string, now time.Time) (string, error) {
	return a.signResponse(req, jwt.AuthorizationResponse{Error: cmp.Or(reason, ErrUnauthorized.Error())}, now)
}

func (a *Authority) signResponse(req *jwt.AuthorizationRequestClaims, response jwt.AuthorizationResponse, now time.Time) (string, error) {
	issuer, err := a.public(Account{ID: a.own(calloutID)})
	if err != nil {
		return "", fmt.Errorf("answering a callout: %w", err)
	}
	claims := &jwt.AuthorizationResponseClaims{AuthorizationResponse: response}
	claims.Subject = req.UserNkey
	claims.Audience = req.Server.ID
	claims.IssuerAccount = issuer
	token, err := encode(claims, a.engine.session, now)
	if err != nil {
		return "", fmt.Errorf("answering a callout: %w", err)
	}
	return token, nil
}
