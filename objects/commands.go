package objects

import (
	"blockd/qapi"
	"blockd/qmp"
)

// RegisterCommands adds the commands about objects to a registry.
func RegisterCommands(q *qmp.Registry, r *Registry) {
	// qom-get and qom-list-get tell the data of secrets, as the field's do.
	o, read := qmp.CommandOptions{}, qmp.CommandOptions{ReadOnly: true}
	qmp.Register(q, "object-add", o, func(c *qmp.Context, a *qapi.ObjectOptions) (qapi.Empty, error) {
		return qapi.Empty{}, r.Add(c, a)
	})
	qmp.Register(q, "object-del", o, func(_ *qmp.Context, a *qapi.ObjectDelArg) (qapi.Empty, error) {
		return qapi.Empty{}, r.Delete(a.ID)
	})
	qmp.Register(q, "qom-list", read, func(_ *qmp.Context, a *qapi.QomPathArg) ([]qapi.ObjectPropertyInfo, error) {
		return r.List(a.Path)
	})
	qmp.Register(q, "qom-get", o, func(_ *qmp.Context, a *qapi.QomGetArg) (any, error) {
		return r.Get(a.Path, a.Property)
	})
	qmp.Register(q, "qom-set", o, func(_ *qmp.Context, a *qapi.QomSetArg) (qapi.Empty, error) {
		return qapi.Empty{}, r.Set(a.Path, a.Property, a.Value)
	})
	qmp.Register(q, "qom-list-get", o, func(_ *qmp.Context, a *qapi.QomListGetArg) ([]qapi.ObjectPropertiesValues, error) {
		return r.ListGet(a.Paths)
	})
	qmp.Register(q, "qom-list-types", read, func(_ *qmp.Context, a *qapi.QomListTypesArg) ([]qapi.ObjectTypeInfo, error) {
		return ListTypes(a.Implements, a.Abstract != nil && *a.Abstract), nil
	})
	qmp.Register(q, "qom-list-properties", read, func(_ *qmp.Context, a *qapi.QomListPropertiesArg) ([]qapi.ObjectPropertyInfo, error) {
		return ListProperties(a.Typename)
	})
}
