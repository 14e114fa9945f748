package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"blockd/qapi"
	"blockd/qmpclient"
)

func qmpCommand(env *Environment) *cobra.Command {
	cmd := command(env, "qmp SOCKET COMMAND [KEY=VALUE...]", "Send one QMP command and print what it returns", `
Sends one command and prints its return as JSON. Members of members have dots
in their keys, the elements of a list are separated by commas, and a value may
be JSON. The server's schema says what is a number and what a string.

  blockd qmp qmp.sock query-block-exports
  blockd qmp qmp.sock blockdev-add driver=raw node-name=d file.driver=file file.filename=/d.img
  blockd qmp qmp.sock blockdev-backup device=disk0 target=copy sync=full job-id=b0
  blockd qmp qmp.sock transaction 'actions=[{"type": "abort", "data": {}}]'

An argument that begins with a brace is the whole argument object.`,
		cobra.MinimumNArgs(2), func(ctx context.Context, c *qmpclient.Client, args []string) error {
			arguments, err := commandArguments(ctx, c, args[0], args[1:])
			if err != nil {
				return err
			}
			answer, err := c.Execute(ctx, args[0], arguments)
			if err != nil {
				return err
			}
			return env.printJSON(answer)
		})
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// commandArguments reads the arguments of a command from words; nil for none.
func commandArguments(ctx context.Context, c *qmpclient.Client, command string, words []string) (any, error) {
	switch {
	case len(words) == 0:
		return nil, nil
	case len(words) == 1 && strings.HasPrefix(words[0], "{"):
		return parseObject(words[0])
	}
	s, err := fetchSchema(ctx, c)
	if err != nil {
		return nil, err
	}
	return s.arguments(command, words)
}

func parseObject(text string) (*qapi.Object, error) {
	v, err := qapi.ParseJSON([]byte(text))
	if err != nil {
		return nil, err
	}
	o, ok := v.(*qapi.Object)
	if !ok {
		return nil, errors.New("the arguments are not a JSON object")
	}
	return o, nil
}

// arguments reads KEY=VALUE words for a command.
func (s *schema) arguments(command string, words []string) (any, error) {
	pairs := make([]string, len(words))
	for i, word := range words {
		if !strings.Contains(word, "=") {
			return nil, fmt.Errorf("%s: expected KEY=VALUE", word)
		}
		pairs[i] = strings.ReplaceAll(word, ",", ",,")
	}
	flat, err := qapi.ParseKeyval(strings.Join(pairs, ","), "")
	if err != nil {
		return nil, err
	}
	return s.typed(s.argument(command), flat), nil
}
