package qmp

import (
	"blockd/qapi"
)

// A session has a role. That of a monitor is control; others come from who let
// the client in (package web). A role is asked for each command, as it was
// declared (CommandOptions.ReadOnly).

// Role returns the role that a command needs: control, also of one that there
// is not. Any goroutine.
func (r *Registry) Role(command string) qapi.SessionRole {
	if c := r.byName[command]; c != nil && c.opts.ReadOnly {
		return qapi.SessionRoleReadOnly
	}
	return qapi.SessionRoleControl
}

// allows refuses what the session's role does not include. Only the role
// control includes all; an unknown one is read-only.
func (s *Session) allows(c *command) error {
	if s.mon.peer.Role == qapi.SessionRoleControl || c.opts.ReadOnly {
		return nil
	}
	return qapi.Errorf("The command %s needs the role '%s'", c.name, qapi.SessionRoleControl)
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
