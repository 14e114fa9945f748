package qmpclient

import (
	"bufio"
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"blockd/qapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const greeting = `{"QMP": {"version": {"package": "x"}, "capabilities": []}}` + "\n"

// serve connects a client to a server that sends the first text at once and
// then answers each line that comes with one of the others. The connection
// ends after the last.
func serve(t *testing.T, first string, answers ...string) (*Client, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		if _, err := theirs.Write([]byte(first)); err != nil {
			return
		}
		lines := bufio.NewScanner(theirs)
		for _, a := range answers {
			if !lines.Scan() {
				return
			}
			if _, err := theirs.Write([]byte(a)); err != nil {
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	c, err := New(ctx, ours)
	if err == nil {
		t.Cleanup(c.Close)
	}
	return c, err
}

func TestAnswersAndEventsAreToldApart(t *testing.T) {
	c, err := serve(t, greeting, `{"return": {}, "id": 1}`,
		`{"event": "A", "timestamp": {"seconds": 5, "microseconds": 6}, "data": {"x": 1}}{"return": [1], "id": 2}`,
		`{"error": {"class": "DeviceNotFound", "desc": "no"}, "id": 3}`)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if v, err := c.Execute(ctx, "a", qapi.NewObject("k", int64(1))); err != nil || sortedText(v) != "[1]" {
		t.Errorf("got %v, %v", v, err)
	}
	_, err = c.Execute(ctx, "b", nil)
	if e := (*qapi.Error)(nil); !errors.As(err, &e) || e.Class != qapi.DeviceNotFound || e.Desc != "no" {
		t.Errorf("got %v", err)
	}
	e, err := c.Next(ctx)
	if err != nil || e.Name != "A" || e.Seconds != 5 || e.Microseconds != 6 || Int(e.Data, "x") != 1 {
		t.Errorf("got %+v, %v", e, err)
	}
	// The server has hung up after its last answer.
	if _, err := c.Next(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Execute(ctx, "c", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func sortedText(v any) string { return string(qapi.AppendJSON(nil, v)) }

func TestStrangersAreRefused(t *testing.T) {
	for name, first := range map[string]string{
		"text":            "HTTP/1.1 400 Bad Request\r\n\r\n",
		"two greetings":   greeting + greeting,
		"neither":         `{"hello": 1}`,
		"no id":           greeting + `{"return": {}}`,
		"nothing at all":  "",
		"cut in the line": `{"QMP": `,
	} {
		if _, err := serve(t, first); err == nil {
			t.Errorf("%s was taken for a QMP server", name)
		}
	}
}

func TestRefusedNegotiationEndsTheConnection(t *testing.T) {
	_, err := serve(t, greeting, `{"error": {"class": "GenericError", "desc": "not now"}, "id": 1}`)
	if err == nil || err.Error() != "not now" {
		t.Errorf("got %v", err)
	}
}

func TestACommandThatIsGivenUpLeavesTheOthers(t *testing.T) {
	c, err := serve(t, greeting, `{"return": {}, "id": 1}`, "\n", `{"return": "late", "id": 2}{"return": "mine", "id": 3}`)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Execute(ctx, "slow", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if v, err := c.Execute(t.Context(), "quick", nil); err != nil || v != "mine" {
		t.Errorf("got %v, %v", v, err)
	}
}

func TestWaitingForTheGreetingCanBeGivenUp(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(ctx, ours); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
