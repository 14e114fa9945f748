package qapi

// The reader of QMP input. Tokens are collected until brackets balance, or
// cannot balance any more, and are then parsed as one message. An error gives
// up the message collected so far, answers once, and reading goes on behind it.

// Limits of the field's reader, against hostile input. They count the tokens of
// one message.
const (
	maxTokenBytes   = 64 << 20 // bytes of all tokens of a message
	maxTokens       = 2 << 20
	maxNesting      = 1024
	parserKeepBytes = 64 << 10 // buffer kept between messages
	parserKeepToken = 1024
)

type token struct {
	kind tokenKind
	// start and end delimit the text in Parser.text.
	start, end int
}

// Parser reads a stream of JSON values in the dialect of QMP. For each value,
// and for each error, Feed and End call their emit once, in order; exactly one
// of emit's arguments is meaningful (err is a *Error). Not safe for concurrent
// use.
type Parser struct {
	out       []parsed // since emit was called
	lex       lexer
	tokens    []token
	text      []byte
	braces    int
	brackets  int
	totalSize int
}

// parsed is one value or error.
type parsed struct {
	v   any
	err error
}

// feedBytes is how much is read between calls of emit: input of nothing but
// errors makes one for each byte, and they should not pile up.
const feedBytes = 512

// NewParser makes a parser.
func NewParser() *Parser {
	p := &Parser{}
	p.lex.emit = p.token
	return p
}

// Feed reads more input, cut anywhere. It keeps no reference to data. emit may
// wait; it must not use the parser.
func (p *Parser) Feed(data []byte, emit func(v any, err error)) {
	for len(data) > 0 {
		n := min(len(data), feedBytes)
		p.lex.feed(data[:n])
		data = data[n:]
		p.hand(emit)
	}
}

// End tells that the input is over: an unfinished token or value is reported as
// an error. The parser can be used again afterwards.
func (p *Parser) End(emit func(v any, err error)) {
	p.lex.end()
	if len(p.tokens) > 0 {
		p.deliver()
	}
	p.reset()
	p.hand(emit)
}

// hand gives out what was read.
func (p *Parser) hand(emit func(v any, err error)) {
	for i, o := range p.out {
		p.out[i] = parsed{}
		emit(o.v, o.err)
	}
	p.out = p.out[:0]
}

// Reset forgets unfinished input, for the next client of the same stream.
func (p *Parser) Reset() {
	p.lex.state = lexStart
	p.lex.reset()
	p.reset()
}

func (p *Parser) reset() {
	p.braces, p.brackets, p.totalSize = 0, 0, 0
	if cap(p.tokens) > parserKeepToken {
		p.tokens = nil
	}
	if cap(p.text) > parserKeepBytes {
		p.text = nil
	}
	p.tokens = p.tokens[:0]
	p.text = p.text[:0]
}

func (p *Parser) fail(err error) {
	p.reset()
	p.out = append(p.out, parsed{err: err})
}

func (p *Parser) token(kind tokenKind, text []byte) {
	size := len(text)
	switch kind {
	case tokLBrace:
		p.braces++
	case tokRBrace:
		p.braces--
	case tokLBracket:
		p.brackets++
	case tokRBracket:
		p.brackets--
	case tokStray:
		p.fail(parseError("stray '%s'", cString(text)))
		return
	case tokTooLong:
		p.fail(Errorf("JSON token size limit exceeded"))
		return
	}
	if kind <= tokComma {
		size = 1 // structural tokens come without text
	}
	switch {
	case p.totalSize+size+1 > maxTokenBytes:
		p.fail(Errorf("JSON token size limit exceeded"))
		return
	case len(p.tokens)+1 > maxTokens:
		p.fail(Errorf("JSON token count limit exceeded"))
		return
	case p.braces+p.brackets > maxNesting:
		p.fail(Errorf("JSON nesting depth limit exceeded"))
		return
	}
	p.totalSize += size
	start := len(p.text)
	p.text = append(p.text, text...)
	p.tokens = append(p.tokens, token{kind, start, len(p.text)})
	if (p.braces > 0 || p.brackets > 0) && p.braces >= 0 && p.brackets >= 0 {
		return
	}
	p.deliver()
}

func (p *Parser) deliver() {
	m := message{tokens: p.tokens, text: p.text}
	v, err := m.value()
	p.reset()
	if err != nil {
		v = nil
	}
	p.out = append(p.out, parsed{v, err})
}

// cString cuts a text where the field's C strings would end.
func cString(b []byte) []byte {
	for i, c := range b {
		if c == 0 {
			return b[:i]
		}
	}
	return b
}

// ParseJSON reads exactly one value. Errors are *Error.
func ParseJSON(data []byte) (any, error) {
	var (
		result any
		got    bool
		first  error
	)
	emit := func(v any, err error) {
		switch {
		case first != nil:
		case got:
			result, first = nil, Errorf("Expecting at most one JSON value")
		case err != nil:
			first = err
		default:
			result, got = v, true
		}
	}
	p := NewParser()
	p.Feed(data, emit)
	p.End(emit)
	if first != nil {
		return nil, first
	}
	if !got {
		return nil, Errorf("Expecting a JSON value")
	}
	return result, nil
}
