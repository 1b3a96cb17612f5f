// SPDX-License-Identifier: Apache-2.0

package instruction

import (
	"errors"
	"fmt"
	"strings"
)

// words splits a text at white space, as a shell would: with quotes, backslashes and
// variables.
func (e *editor) words(text string) ([]string, error) {
	l := &lexer{rest: text, variable: e.variable, split: true}
	err := l.run()
	return l.words, err
}

// word is words for a text that is one word, whatever white space it has.
func (e *editor) word(text string) (string, error) {
	l := &lexer{rest: text, variable: e.variable}
	err := l.run()
	return strings.Join(l.words, ""), err
}

func (e *editor) variable(name string) (string, bool) {
	for _, v := range e.Env {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value, true
		}
	}
	return "", false
}

// lexer reads words.
type lexer struct {
	rest     string
	variable func(name string) (value string, set bool)
	split    bool

	words   []string
	current strings.Builder
	begun   bool // there is a current word, if only an empty one in quotes
}

func (l *lexer) run() error {
	for l.rest != "" {
		c := l.next()
		switch {
		case l.split && (c == ' ' || c == '\t'):
			l.end()
			continue
		case c == '\'':
			text, after, ok := strings.Cut(l.rest, "'")
			if !ok {
				return errors.New("a single quote is not closed")
			}
			l.current.WriteString(text)
			l.rest = after
		case c == '"':
			if err := l.quoted(); err != nil {
				return err
			}
		case c == '\\' && l.rest != "":
			l.current.WriteByte(l.next())
		case c == '$':
			if err := l.expand(); err != nil {
				return err
			}
		default:
			l.current.WriteByte(c)
		}
		l.begun = true
	}
	l.end()
	return nil
}

func (l *lexer) next() byte {
	c := l.rest[0]
	l.rest = l.rest[1:]
	return c
}

func (l *lexer) end() {
	if l.begun {
		l.words = append(l.words, l.current.String())
	}
	l.current.Reset()
	l.begun = false
}

// quoted reads to the closing double quote.
func (l *lexer) quoted() error {
	for l.rest != "" {
		switch c := l.next(); {
		case c == '"':
			return nil
		case c == '\\' && l.rest != "" && strings.IndexByte("\"\\$", l.rest[0]) >= 0:
			l.current.WriteByte(l.next())
		case c == '$':
			if err := l.expand(); err != nil {
				return err
			}
		default:
			l.current.WriteByte(c)
		}
	}
	return errors.New("a double quote is not closed")
}

// expand reads what follows a dollar sign: name, {name}, {name:-word} or {name:+word},
// whose word is taken as it is. A variable that is not set is nothing.
func (l *lexer) expand() error {
	if !strings.HasPrefix(l.rest, "{") {
		name := l.name()
		if name == "" {
			l.current.WriteByte('$')
		}
		value, _ := l.variable(name)
		l.current.WriteString(value)
		return nil
	}
	text, after, ok := strings.Cut(l.rest[1:], "}")
	if !ok {
		return errors.New("a ${ is not closed")
	}
	l.rest = text
	name := l.name()
	how := l.rest
	l.rest = after
	value, _ := l.variable(name)
	switch {
	case name == "":
		return fmt.Errorf("${%s} names no variable", text)
	case how == "":
	case strings.HasPrefix(how, ":-"):
		if value == "" {
			value = how[2:]
		}
	case strings.HasPrefix(how, ":+"):
		if value != "" {
			value = how[2:]
		}
	default:
		return fmt.Errorf("${%s} is neither a variable nor one with :- or :+", text)
	}
	l.current.WriteString(value)
	return nil
}

// name reads the name of a variable.
func (l *lexer) name() string {
	i := 0
	for i < len(l.rest) && (l.rest[i] == '_' || letter(l.rest[i]) || i > 0 && digit(l.rest[i])) {
		i++
	}
	name := l.rest[:i]
	l.rest = l.rest[i:]
	return name
}

func letter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func digit(c byte) bool  { return c >= '0' && c <= '9' }
