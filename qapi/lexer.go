package qapi

// The lexer turns bytes into tokens, one byte at a time, so that input may
// arrive in any pieces. After a byte that no token can continue with, it skips
// to the next place that is a good start: a structural character, a control
// character other than tab, or one of the bytes 0xFE and 0xFF, which UTF-8
// never contains and which clients send to force a known state (qmp-spec,
// "Server's reaction to invalid input").

type tokenKind uint8

const (
	tokLBrace tokenKind = iota
	tokRBrace
	tokLBracket
	tokRBracket
	tokColon
	tokComma
	tokInteger
	tokFloat
	tokKeyword
	tokString  // with its quotes and escapes
	tokStray   // an error: everything up to and with the offending byte
	tokTooLong // an error: a token past maxTokenBytes
)

type lexState uint8

const (
	lexStart lexState = iota
	lexRecovery
	lexDouble
	lexDoubleEscape
	lexSingle
	lexSingleEscape
	lexKeyword
	lexMinus
	lexZero
	lexDigits
	lexPoint
	lexFraction
	lexExponent
	lexExponentSign
	lexExponentDigits
)

type lexer struct {
	state lexState
	buf   []byte
	emit  func(kind tokenKind, text []byte)
}

func isStructural(c byte) bool {
	return c == '{' || c == '}' || c == '[' || c == ']' || c == ',' || c == ':'
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// inString tells whether a string may hold c unescaped, quotes and backslash
// aside.
func inString(c byte) bool { return c >= 0x20 && c <= 0xFD }

func (l *lexer) feed(data []byte) {
	for i := 0; i < len(data); i++ {
		if n := l.stringRun(data[i:]); n > 0 {
			l.buf = append(l.buf, data[i:i+n]...)
			i += n - 1
			l.limit()
			continue
		}
		for !l.step(data[i]) {
		}
	}
}

// stringRun is the number of leading bytes of data that merely extend the
// string being read. It stops at the token limit, so that the state after an
// oversized token does not depend on how the input was cut.
func (l *lexer) stringRun(data []byte) int {
	var quote byte
	switch l.state {
	case lexDouble:
		quote = '"'
	case lexSingle:
		quote = '\''
	default:
		return 0
	}
	room := maxTokenBytes + 1 - len(l.buf)
	if len(data) > room {
		data = data[:room]
	}
	n := 0
	for n < len(data) && inString(data[n]) && data[n] != quote && data[n] != '\\' {
		n++
	}
	return n
}

// limit ends a token that grew past the limit, and reading starts afresh.
func (l *lexer) limit() {
	if len(l.buf) > maxTokenBytes {
		l.finish(tokTooLong)
	}
}

func (l *lexer) finish(kind tokenKind) {
	l.emit(kind, l.buf)
	l.state = lexStart
	l.reset()
}

// reset drops the token read so far, and its memory when it was large.
func (l *lexer) reset() {
	if cap(l.buf) > 1<<16 {
		l.buf = nil
	}
	l.buf = l.buf[:0]
}

// take extends the token by c and moves to state.
func (l *lexer) take(c byte, state lexState) bool {
	l.buf = append(l.buf, c)
	l.state = state
	l.limit()
	return true
}

func (l *lexer) stray(c byte) bool {
	l.buf = append(l.buf, c)
	l.fail()
	return true
}

func (l *lexer) fail() {
	l.finish(tokStray)
	l.state = lexRecovery
}

// step consumes c and returns true, or ends the token before c and returns
// false: c is then looked at again.
func (l *lexer) step(c byte) bool {
	switch l.state {
	case lexStart:
		return l.stepStart(c)
	case lexRecovery:
		if isStructural(c) || c < 0x20 && c != '\t' || c >= 0xFE {
			l.state = lexStart
			return false
		}
		return true
	case lexDouble, lexSingle:
		return l.stepString(c)
	case lexDoubleEscape, lexSingleEscape:
		if !inString(c) {
			return l.stray(c)
		}
		return l.take(c, l.state-1)
	case lexKeyword:
		if c >= 'a' && c <= 'z' {
			return l.take(c, lexKeyword)
		}
		l.finish(tokKeyword)
		return false
	}
	return l.stepNumber(c)
}

func (l *lexer) stepStart(c byte) bool {
	switch c {
	case ' ', '\t', '\r', '\n':
		return true
	case '{':
		l.emit(tokLBrace, nil)
		return true
	case '}':
		l.emit(tokRBrace, nil)
		return true
	case '[':
		l.emit(tokLBracket, nil)
		return true
	case ']':
		l.emit(tokRBracket, nil)
		return true
	case ':':
		l.emit(tokColon, nil)
		return true
	case ',':
		l.emit(tokComma, nil)
		return true
	case '"':
		return l.take(c, lexDouble)
	case '\'':
		return l.take(c, lexSingle)
	case '-':
		return l.take(c, lexMinus)
	case '0':
		return l.take(c, lexZero)
	}
	switch {
	case isDigit(c):
		return l.take(c, lexDigits)
	case c >= 'a' && c <= 'z':
		return l.take(c, lexKeyword)
	}
	return l.stray(c)
}

func (l *lexer) stepString(c byte) bool {
	switch {
	case !inString(c):
		return l.stray(c)
	case c == '\\':
		return l.take(c, l.state+1)
	case c == '"' && l.state == lexDouble, c == '\'' && l.state == lexSingle:
		l.buf = append(l.buf, c)
		l.finish(tokString)
		return true
	}
	return l.take(c, l.state)
}

func (l *lexer) stepNumber(c byte) bool {
	exponent := c == 'e' || c == 'E'
	switch l.state {
	case lexMinus:
		if c == '0' {
			return l.take(c, lexZero)
		}
		if isDigit(c) {
			return l.take(c, lexDigits)
		}
		return l.stray(c)
	case lexZero, lexDigits:
		switch {
		case c == '.':
			return l.take(c, lexPoint)
		case exponent && l.state == lexDigits:
			return l.take(c, lexExponent)
		case isDigit(c) && l.state == lexDigits:
			return l.take(c, lexDigits)
		case isDigit(c):
			return l.stray(c) // a leading zero
		}
		l.finish(tokInteger) // "0e1" is the integer 0, then a keyword
		return false
	case lexPoint:
		if isDigit(c) {
			return l.take(c, lexFraction)
		}
		return l.stray(c)
	case lexFraction:
		if isDigit(c) {
			return l.take(c, lexFraction)
		}
		if exponent {
			return l.take(c, lexExponent)
		}
	case lexExponent:
		if c == '+' || c == '-' {
			return l.take(c, lexExponentSign)
		}
		if isDigit(c) {
			return l.take(c, lexExponentDigits)
		}
		return l.stray(c)
	case lexExponentSign:
		if isDigit(c) {
			return l.take(c, lexExponentDigits)
		}
		return l.stray(c)
	case lexExponentDigits:
		if isDigit(c) {
			return l.take(c, lexExponentDigits)
		}
	}
	l.finish(tokFloat)
	return false
}

// end closes the token that the end of the input cut short, if there is one.
func (l *lexer) end() {
	switch l.state {
	case lexStart:
	case lexRecovery:
		l.state = lexStart
	case lexKeyword:
		l.finish(tokKeyword)
	case lexZero, lexDigits:
		l.finish(tokInteger)
	case lexFraction, lexExponentDigits:
		l.finish(tokFloat)
	default:
		l.finish(tokStray)
	}
}
