package objects

import (
	"io"
	"path/filepath"

	"blockd/blockgraph"
	"blockd/qapi"
)

// Authorisation: who may connect, by a name that the transport has verified.

// authorizer is an object that decides about identities. It may read a file.
//
//blockd:io
type authorizer interface {
	Object
	allows(r *Registry, identity string) (bool, error)
}

// AuthzSimple is an object of type authz-simple: it allows one identity.
type AuthzSimple struct {
	identity string
}

// AuthzList is an object of type authz-list: the first rule that matches
// decides, else the policy.
type AuthzList struct {
	policy qapi.QAuthZListPolicy
	rules  []qapi.QAuthZListRule
}

// AuthzListfile is an object of type authz-listfile: an AuthzList in a file.
type AuthzListfile struct {
	filename string
	refresh  bool
	first    *AuthzList // as read by object-add
}

// QOMType implements Object.
func (*AuthzSimple) QOMType() qapi.ObjectType { return qapi.ObjectTypeAuthzSimple }

// QOMType implements Object.
func (*AuthzList) QOMType() qapi.ObjectType { return qapi.ObjectTypeAuthzList }

// QOMType implements Object.
func (*AuthzListfile) QOMType() qapi.ObjectType { return qapi.ObjectTypeAuthzListfile }

//blockd:io
func newAuthzList(p *qapi.AuthZListProperties) *AuthzList {
	a := &AuthzList{policy: qapi.QAuthZListPolicyDeny}
	if p == nil {
		return a
	}
	take(&a.policy, p.Policy)
	a.rules = p.Rules
	return a
}

func newAuthzListfile(p *qapi.AuthZListFileProperties) *AuthzListfile {
	a := &AuthzListfile{filename: p.Filename, refresh: true}
	take(&a.refresh, p.Refresh)
	return a
}

// Authorised asks the authorisation object with an id about an identity. Who
// cannot be asked allows nobody. It may read a file. Errors are *qapi.Error.
// Data plane: a server asks while a client connects.
//
//blockd:io
func (r *Registry) Authorised(id, identity string) (bool, error) {
	o, ok := Lookup[Object](r, id)
	if !ok {
		return false, qapi.Errorf("Cannot find QAuthZ object ID %s", id)
	}
	a, ok := o.(authorizer)
	if !ok {
		return false, qapi.Errorf("Object '%s' is not a QAuthZ subclass", id)
	}
	return a.allows(r, identity)
}

func (a *AuthzSimple) allows(_ *Registry, identity string) (bool, error) {
	return a.identity == identity, nil
}

func (a *AuthzList) allows(_ *Registry, identity string) (bool, error) {
	for _, rule := range a.rules {
		matches := rule.Match == identity
		if rule.Format != nil && *rule.Format == qapi.QAuthZListFormatGlob {
			matches = glob(rule.Match, identity)
		}
		if matches {
			return rule.Policy == qapi.QAuthZListPolicyAllow, nil
		}
	}
	return a.policy == qapi.QAuthZListPolicyAllow, nil
}

// glob matches a pattern in which * is any text and ? any one byte.
func glob(pattern, s string) bool {
	star, mark := -1, 0
	p, i := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0: // let the last star take one more
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// allows reads the file again, so that a change counts from the next client on;
// a file that cannot be read any more allows nobody.
func (a *AuthzListfile) allows(r *Registry, identity string) (bool, error) {
	list := a.first
	if a.refresh {
		var err error
		if list, err = a.load(r); err != nil {
			return false, err
		}
	}
	return list.allows(r, identity)
}

// complete reads the file for the first time.
func (a *AuthzListfile) complete(r *Registry) (err error) {
	if a.refresh && !filepath.IsAbs(a.filename) {
		return qapi.Errorf("Filename must be an absolute path")
	}
	a.first, err = a.load(r)
	return err
}

// maxAuthzFile is the longest list in bytes that is read.
const maxAuthzFile = 4 << 20

//blockd:io
func (a *AuthzListfile) load(r *Registry) (*AuthzList, error) {
	fail := func(err error) (*AuthzList, error) {
		return nil, qapi.Errorf("Unable to read '%s': %s", a.filename, blockgraph.Strerror(err))
	}
	f, err := r.open(a.filename)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAuthzFile+1))
	if err != nil {
		return fail(err)
	}
	if len(b) > maxAuthzFile {
		return nil, qapi.Errorf("Unable to read '%s': File is too large", a.filename)
	}
	v, err := qapi.ParseJSON(b)
	if err != nil {
		return nil, err
	}
	obj, ok := v.(*qapi.Object)
	if !ok {
		return nil, qapi.Errorf("File '%s' must contain a JSON object", a.filename)
	}
	p := &qapi.AuthZListProperties{}
	if err := qapi.Decode(obj, p); err != nil {
		return nil, err
	}
	return newAuthzList(p), nil
}

var (
	authzSimpleProperties = []property{fixed("identity", "string", func(a *AuthzSimple) any { return a.identity })}
	authzListProperties   = []property{
		fixed("policy", "QAuthZListPolicy", func(a *AuthzList) any { return string(a.policy) }),
		fixed("rules", "QAuthZListRule", func(a *AuthzList) any { return a.rules }),
	}
	authzListfileProperties = []property{
		fixed("filename", "string", func(a *AuthzListfile) any { return a.filename }),
		fixed("refresh", "bool", func(a *AuthzListfile) any { return a.refresh }),
	}
)
