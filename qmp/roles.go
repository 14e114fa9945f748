package qmp

import (
	"path"

	"blockd/qapi"
)

// A session has a role. That of a monitor is control; others come from who let
// the client in (package web). A role is asked for each command, by its name.

// RoleRule says which role the commands of a pattern need.
type RoleRule struct {
	// Pattern is a name, in which * stands for any text.
	Pattern string
	Role    qapi.SessionRole
}

// RoleRules classify commands; the first rule that matches counts. What none
// matches needs control, and a test requires a rule for each command that there
// is: a new one is read-only only after somebody has thought about it.
//
// read-only are those that change nothing for anybody else, tell no secrets, and
// do not make the daemon read or write images.
var RoleRules = []RoleRule{
	{"qmp_capabilities", qapi.SessionRoleReadOnly},
	// qom-get and qom-list-get tell the data of secrets, as the field's do.
	{"qom-get", qapi.SessionRoleControl},
	{"qom-list-get", qapi.SessionRoleControl},
	{"qom-set", qapi.SessionRoleControl},
	{"qom-list", qapi.SessionRoleReadOnly},
	{"qom-list-*", qapi.SessionRoleReadOnly},
	{"query-*", qapi.SessionRoleReadOnly},
	{"x-query-*", qapi.SessionRoleReadOnly},
	{"x-debug-query-*", qapi.SessionRoleReadOnly},
	{"x-debug-block-dirty-bitmap-sha256", qapi.SessionRoleControl}, // it reads all of a bitmap
	{"x-graph-subscribe", qapi.SessionRoleReadOnly},
	{"x-log-subscribe", qapi.SessionRoleReadOnly},

	{"quit", qapi.SessionRoleControl},
	{"add-fd", qapi.SessionRoleControl},
	{"remove-fd", qapi.SessionRoleControl},
	{"getfd", qapi.SessionRoleControl},
	{"closefd", qapi.SessionRoleControl},
	{"chardev-*", qapi.SessionRoleControl},
	{"object-*", qapi.SessionRoleControl},
	{"block*", qapi.SessionRoleControl},
	{"x-block*", qapi.SessionRoleControl},
	{"change-backing-file", qapi.SessionRoleControl},
	{"drive-*", qapi.SessionRoleControl},
	{"transaction", qapi.SessionRoleControl},
	{"job-*", qapi.SessionRoleControl},
	{"nbd-server-*", qapi.SessionRoleControl},
	{"x-log-*", qapi.SessionRoleControl},
}

// RoleFor returns the role that a command needs, and whether a rule says so.
// Any goroutine.
func RoleFor(command string) (role qapi.SessionRole, ruled bool) {
	for _, r := range RoleRules {
		if ok, _ := path.Match(r.Pattern, command); ok {
			return r.Role, true
		}
	}
	return qapi.SessionRoleControl, false
}

// allows refuses what the session's role does not include. Only the role
// control includes all; an unknown one is read-only.
func (s *Session) allows(command string) error {
	if s.mon.peer.Role == qapi.SessionRoleControl {
		return nil
	}
	if need, _ := RoleFor(command); need == qapi.SessionRoleReadOnly {
		return nil
	}
	return qapi.Errorf("The command %s needs the role '%s'", command, qapi.SessionRoleControl)
}

// session is the command x-query-session.
func (s *Session) session() *qapi.SessionInfo {
	info := s.mon.peer
	if named, ok := s.conn.(interface{ Peer() (string, *uint32) }); ok && info.Peer == "" {
		info.Peer, info.UID = named.Peer()
	}
	info.Limits.Queue, info.Limits.Backlog = QueueLength, int64(s.mon.srv.cfg.Backlog)
	return &info
}
