package qapi

// The result of query-qmp-schema.

// SchemaMetaType is the kind of a schema entity.
type SchemaMetaType string

// Values of SchemaMetaType.
const (
	SchemaMetaTypeBuiltin   SchemaMetaType = "builtin"
	SchemaMetaTypeEnum      SchemaMetaType = "enum"
	SchemaMetaTypeArray     SchemaMetaType = "array"
	SchemaMetaTypeObject    SchemaMetaType = "object"
	SchemaMetaTypeAlternate SchemaMetaType = "alternate"
	SchemaMetaTypeCommand   SchemaMetaType = "command"
	SchemaMetaTypeEvent     SchemaMetaType = "event"
)

// QAPIEnum lists the values that blockd accepts.
func (SchemaMetaType) QAPIEnum() []string {
	return []string{"builtin", "enum", "array", "object", "alternate", "command", "event"}
}

// JSONType is a kind of JSON value.
type JSONType string

// Values of JSONType.
const (
	JSONTypeString  JSONType = "string"
	JSONTypeNumber  JSONType = "number"
	JSONTypeInt     JSONType = "int"
	JSONTypeBoolean JSONType = "boolean"
	JSONTypeNull    JSONType = "null"
	JSONTypeObject  JSONType = "object"
	JSONTypeArray   JSONType = "array"
	JSONTypeValue   JSONType = "value"
)

// QAPIEnum lists the values that blockd accepts.
func (JSONType) QAPIEnum() []string {
	return []string{"string", "number", "int", "boolean", "null", "object", "array", "value"}
}

// SchemaInfo describes a command, an event or a type.
type SchemaInfo struct {
	// Of types, a number without meaning.
	Name      string               `qapi:"name"`
	MetaType  SchemaMetaType       `qapi:"meta-type,discriminator"`
	Features  []string             `qapi:"features,optional"`
	Builtin   *SchemaInfoBuiltin   `qapi:",case=builtin"`
	Enum      *SchemaInfoEnum      `qapi:",case=enum"`
	Array     *SchemaInfoArray     `qapi:",case=array"`
	Object    *SchemaInfoObject    `qapi:",case=object"`
	Alternate *SchemaInfoAlternate `qapi:",case=alternate"`
	Command   *SchemaInfoCommand   `qapi:",case=command"`
	Event     *SchemaInfoEvent     `qapi:",case=event"`
}

// SchemaInfoBuiltin describes a built-in type.
type SchemaInfoBuiltin struct {
	JSONType JSONType `qapi:"json-type"`
}

// SchemaInfoEnumMember is a value of an enum.
type SchemaInfoEnumMember struct {
	Name     string   `qapi:"name"`
	Features []string `qapi:"features,optional"`
}

// SchemaInfoEnum describes an enum.
type SchemaInfoEnum struct {
	Members []SchemaInfoEnumMember `qapi:"members"`
	Values  []string               `qapi:"values,features=deprecated"`
}

// SchemaInfoArray describes a list type.
type SchemaInfoArray struct {
	ElementType string `qapi:"element-type"`
}

// SchemaInfoObjectMember is a member of an object.
type SchemaInfoObjectMember struct {
	Name string `qapi:"name"`
	Type string `qapi:"type"`
	// Present if the member is optional.
	Default  *any     `qapi:"default"`
	Features []string `qapi:"features,optional"`
}

// SchemaInfoObjectVariant is what a value of the tag adds to a union.
type SchemaInfoObjectVariant struct {
	Case string `qapi:"case"`
	Type string `qapi:"type"`
}

// SchemaInfoObject describes a struct or a flat union.
type SchemaInfoObject struct {
	Members []SchemaInfoObjectMember `qapi:"members"`
	// The member that selects the variant.
	Tag      *string                   `qapi:"tag"`
	Variants []SchemaInfoObjectVariant `qapi:"variants,optional"`
}

// SchemaInfoAlternateMember is a branch of an alternate.
type SchemaInfoAlternateMember struct {
	Type string `qapi:"type"`
}

// SchemaInfoAlternate describes an alternate.
type SchemaInfoAlternate struct {
	Members []SchemaInfoAlternateMember `qapi:"members"`
}

// SchemaInfoCommand describes a command.
type SchemaInfoCommand struct {
	ArgType string `qapi:"arg-type"`
	RetType string `qapi:"ret-type"`
	// Default false.
	AllowOOB *bool `qapi:"allow-oob"`
}

// SchemaInfoEvent describes an event.
type SchemaInfoEvent struct {
	ArgType string `qapi:"arg-type"`
}
