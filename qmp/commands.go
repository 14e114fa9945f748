package qmp

import (
	"blockd/qapi"
)

// RegisterCommands registers the commands of the protocol itself, those for
// passing descriptors, and those of the character devices.
func RegisterCommands(r *Registry) {
	o, read := CommandOptions{}, CommandOptions{ReadOnly: true}
	Register(r, "qmp_capabilities", read, func(c *Context, a *qapi.QmpCapabilitiesArg) (qapi.Empty, error) {
		return qapi.Empty{}, c.s.negotiate(a.Enable)
	})
	Register(r, "query-version", read, func(c *Context, _ *qapi.Empty) (*qapi.VersionInfo, error) {
		return &c.Server().cfg.Version, nil
	})
	Register(r, "query-commands", read, func(*Context, *qapi.Empty) ([]qapi.CommandInfo, error) {
		return r.Commands(), nil
	})
	Register(r, "query-qmp-schema", read, func(*Context, *qapi.Empty) ([]qapi.SchemaInfo, error) {
		return r.schema.Introspect(), nil
	})
	Register(r, "x-query-session", CommandOptions{Unstable: true, ReadOnly: true}, func(c *Context, _ *qapi.Empty) (*qapi.SessionInfo, error) {
		return c.s.session(), nil
	})
	Register(r, "quit", o, func(c *Context, _ *qapi.Empty) (qapi.Empty, error) {
		if quit := c.Server().cfg.Quit; quit != nil {
			if err := quit(c); err != nil {
				return qapi.Empty{}, err
			}
		}
		c.s.quit = true
		return qapi.Empty{}, nil
	})
	registerFDCommands(r)
	registerChardevCommands(r)
}

func registerFDCommands(r *Registry) {
	o, read := CommandOptions{}, CommandOptions{ReadOnly: true}
	Register(r, "getfd", o, func(c *Context, a *qapi.FdNameArg) (qapi.Empty, error) {
		f, err := c.TakeFD()
		if err == nil {
			err = c.s.mon.fds.put(a.FDName, f)
		}
		return qapi.Empty{}, err
	})
	Register(r, "closefd", o, func(c *Context, a *qapi.FdNameArg) (qapi.Empty, error) {
		return qapi.Empty{}, c.s.mon.fds.closeOne(a.FDName)
	})
	Register(r, "add-fd", o, func(c *Context, a *qapi.AddFdArg) (qapi.AddfdInfo, error) {
		f, err := c.TakeFD()
		if err != nil {
			return qapi.AddfdInfo{}, err
		}
		return c.Server().fdsets.Add(f, a.FdsetID, a.Opaque)
	})
	Register(r, "remove-fd", o, func(c *Context, a *qapi.RemoveFdArg) (qapi.Empty, error) {
		return qapi.Empty{}, c.Server().fdsets.remove(a.FdsetID, a.FD)
	})
	Register(r, "query-fdsets", read, func(c *Context, _ *qapi.Empty) ([]qapi.FdsetInfo, error) {
		return c.Server().fdsets.Query(), nil
	})
}

func registerChardevCommands(r *Registry) {
	o, read := CommandOptions{}, CommandOptions{ReadOnly: true}
	Register(r, "query-chardev", read, func(c *Context, _ *qapi.Empty) ([]qapi.ChardevInfo, error) {
		return c.Server().cfg.Chardevs.QueryChardev(), nil
	})
	Register(r, "query-chardev-backends", read, func(c *Context, _ *qapi.Empty) ([]qapi.ChardevBackendInfo, error) {
		return c.Server().cfg.Chardevs.QueryChardevBackends(), nil
	})
	Register(r, "chardev-add", o, func(c *Context, a *qapi.ChardevAddArg) (qapi.ChardevReturn, error) {
		return c.Server().cfg.Chardevs.ChardevAdd(c, a, c.TakeNamedFD)
	})
	Register(r, "chardev-change", o, func(c *Context, a *qapi.ChardevAddArg) (qapi.ChardevReturn, error) {
		return c.Server().cfg.Chardevs.ChardevChange(c, a, c.TakeNamedFD)
	})
	Register(r, "chardev-remove", o, func(c *Context, a *qapi.ChardevIDArg) (qapi.Empty, error) {
		return qapi.Empty{}, c.Server().cfg.Chardevs.ChardevRemove(a)
	})
	Register(r, "chardev-send-break", o, func(c *Context, a *qapi.ChardevIDArg) (qapi.Empty, error) {
		return qapi.Empty{}, c.Server().cfg.Chardevs.ChardevSendBreak(a)
	})
}
