package qapi

// Arguments and results of object-add, object-del, --object and the commands
// that look at objects: qom-list, qom-get, qom-set and their kin.

// ObjectType is the type of an object that a user can create.
type ObjectType string

// Values of ObjectType.
const (
	ObjectTypeAuthzList     ObjectType = "authz-list"
	ObjectTypeAuthzListfile ObjectType = "authz-listfile"
	ObjectTypeAuthzSimple   ObjectType = "authz-simple"
	ObjectTypeIothread      ObjectType = "iothread"
	ObjectTypeMainLoop      ObjectType = "main-loop"
	ObjectTypeSecret        ObjectType = "secret"
	ObjectTypeThrottleGroup ObjectType = "throttle-group"
	ObjectTypeTLSCredsPsk   ObjectType = "tls-creds-psk"
	ObjectTypeTLSCredsX509  ObjectType = "tls-creds-x509"
)

// QAPIEnum lists the values that blockd accepts.
func (ObjectType) QAPIEnum() []string {
	return []string{"authz-list", "authz-listfile", "authz-simple", "iothread", "main-loop", "secret", "throttle-group", "tls-creds-psk", "tls-creds-x509"}
}

// QCryptoSecretFormat is the encoding of a secret's data.
type QCryptoSecretFormat string

// Values of QCryptoSecretFormat.
const (
	QCryptoSecretFormatRaw    QCryptoSecretFormat = "raw"
	QCryptoSecretFormatBase64 QCryptoSecretFormat = "base64"
)

// QAPIEnum lists the values that blockd accepts.
func (QCryptoSecretFormat) QAPIEnum() []string {
	return []string{"raw", "base64"}
}

// EventLoopBaseProperties are the properties of every event loop.
type EventLoopBaseProperties struct {
	// Requests per submission; 0 lets the engine choose.
	AIOMaxBatch   *int64 `qapi:"aio-max-batch"`
	ThreadPoolMin *int64 `qapi:"thread-pool-min"`
	ThreadPoolMax *int64 `qapi:"thread-pool-max"`
}

// IothreadProperties are the properties of an I/O thread.
type IothreadProperties struct {
	EventLoopBaseProperties
	// Nanoseconds of busy polling; 0 turns it off.
	PollMaxNs *int64 `qapi:"poll-max-ns"`
	// Factor; 0 lets the engine choose.
	PollGrow *int64 `qapi:"poll-grow"`
	// Divisor; 0 lets the engine choose.
	PollShrink *int64 `qapi:"poll-shrink"`
}

// MainLoopProperties are the properties of the main loop.
type MainLoopProperties struct {
	EventLoopBaseProperties
}

// SecretProperties hold a secret, or say where it is. Data and File exclude
// each other.
type SecretProperties struct {
	// Default raw.
	Format *QCryptoSecretFormat `qapi:"format"`
	KeyID  *string              `qapi:"keyid"`
	IV     *string              `qapi:"iv"`
	Data   *string              `qapi:"data"`
	File   *string              `qapi:"file"`
}

// ThrottleLimits are the limits of a throttle group, per second; sizes are
// bytes, the -length members seconds. 0 is no limit.
type ThrottleLimits struct {
	IOPSTotal          *int64 `qapi:"iops-total"`
	IOPSTotalMax       *int64 `qapi:"iops-total-max"`
	IOPSTotalMaxLength *int64 `qapi:"iops-total-max-length"`
	IOPSRead           *int64 `qapi:"iops-read"`
	IOPSReadMax        *int64 `qapi:"iops-read-max"`
	IOPSReadMaxLength  *int64 `qapi:"iops-read-max-length"`
	IOPSWrite          *int64 `qapi:"iops-write"`
	IOPSWriteMax       *int64 `qapi:"iops-write-max"`
	IOPSWriteMaxLength *int64 `qapi:"iops-write-max-length"`
	BPSTotal           *int64 `qapi:"bps-total"`
	BPSTotalMax        *int64 `qapi:"bps-total-max"`
	BPSTotalMaxLength  *int64 `qapi:"bps-total-max-length"`
	BPSRead            *int64 `qapi:"bps-read"`
	BPSReadMax         *int64 `qapi:"bps-read-max"`
	BPSReadMaxLength   *int64 `qapi:"bps-read-max-length"`
	BPSWrite           *int64 `qapi:"bps-write"`
	BPSWriteMax        *int64 `qapi:"bps-write-max"`
	BPSWriteMaxLength  *int64 `qapi:"bps-write-max-length"`
	IOPSSize           *int64 `qapi:"iops-size"`
}

// ThrottleGroupProperties are the properties of a throttle group. The x-
// members are an older spelling of Limits.
type ThrottleGroupProperties struct {
	Limits              *ThrottleLimits `qapi:"limits"`
	XIOPSTotal          *int64          `qapi:"x-iops-total,features=unstable"`
	XIOPSTotalMax       *int64          `qapi:"x-iops-total-max,features=unstable"`
	XIOPSTotalMaxLength *int64          `qapi:"x-iops-total-max-length,features=unstable"`
	XIOPSRead           *int64          `qapi:"x-iops-read,features=unstable"`
	XIOPSReadMax        *int64          `qapi:"x-iops-read-max,features=unstable"`
	XIOPSReadMaxLength  *int64          `qapi:"x-iops-read-max-length,features=unstable"`
	XIOPSWrite          *int64          `qapi:"x-iops-write,features=unstable"`
	XIOPSWriteMax       *int64          `qapi:"x-iops-write-max,features=unstable"`
	XIOPSWriteMaxLength *int64          `qapi:"x-iops-write-max-length,features=unstable"`
	XBPSTotal           *int64          `qapi:"x-bps-total,features=unstable"`
	XBPSTotalMax        *int64          `qapi:"x-bps-total-max,features=unstable"`
	XBPSTotalMaxLength  *int64          `qapi:"x-bps-total-max-length,features=unstable"`
	XBPSRead            *int64          `qapi:"x-bps-read,features=unstable"`
	XBPSReadMax         *int64          `qapi:"x-bps-read-max,features=unstable"`
	XBPSReadMaxLength   *int64          `qapi:"x-bps-read-max-length,features=unstable"`
	XBPSWrite           *int64          `qapi:"x-bps-write,features=unstable"`
	XBPSWriteMax        *int64          `qapi:"x-bps-write-max,features=unstable"`
	XBPSWriteMaxLength  *int64          `qapi:"x-bps-write-max-length,features=unstable"`
	XIOPSSize           *int64          `qapi:"x-iops-size,features=unstable"`
}

// ObjectOptions is the argument of object-add and of --object.
type ObjectOptions struct {
	QOMType       ObjectType               `qapi:"qom-type,discriminator"`
	ID            string                   `qapi:"id"`
	AuthzList     *AuthZListProperties     `qapi:",case=authz-list"`
	AuthzListfile *AuthZListFileProperties `qapi:",case=authz-listfile"`
	AuthzSimple   *AuthZSimpleProperties   `qapi:",case=authz-simple"`
	Iothread      *IothreadProperties      `qapi:",case=iothread"`
	MainLoop      *MainLoopProperties      `qapi:",case=main-loop"`
	Secret        *SecretProperties        `qapi:",case=secret"`
	ThrottleGroup *ThrottleGroupProperties `qapi:",case=throttle-group"`
	TLSCredsPsk   *TLSCredsPskProperties   `qapi:",case=tls-creds-psk"`
	TLSCredsX509  *TLSCredsX509Properties  `qapi:",case=tls-creds-x509"`
}

// ObjectDelArg is the argument of object-del.
type ObjectDelArg struct {
	ID string `qapi:"id"`
}

// QomPathArg is the argument of qom-list.
type QomPathArg struct {
	// Absolute ("/objects/x") or partial ("x").
	Path string `qapi:"path"`
}

// QomGetArg is the argument of qom-get.
type QomGetArg struct {
	Path     string `qapi:"path"`
	Property string `qapi:"property"`
}

// QomSetArg is the argument of qom-set.
type QomSetArg struct {
	Path     string `qapi:"path"`
	Property string `qapi:"property"`
	Value    any    `qapi:"value"`
}

// QomListGetArg is the argument of qom-list-get.
type QomListGetArg struct {
	Paths []string `qapi:"paths"`
}

// QomListTypesArg is the argument of qom-list-types.
type QomListTypesArg struct {
	// Only types that are or descend from this one.
	Implements *string `qapi:"implements"`
	// Abstract types, too. Default false.
	Abstract *bool `qapi:"abstract"`
}

// QomListPropertiesArg is the argument of qom-list-properties.
type QomListPropertiesArg struct {
	Typename string `qapi:"typename"`
}

// ObjectPropertyInfo describes a property of an object.
type ObjectPropertyInfo struct {
	Name string `qapi:"name"`
	// "int", "string", the name of a QAPI type, or "child<TYPE>".
	Type         string  `qapi:"type"`
	Description  *string `qapi:"description"`
	DefaultValue any     `qapi:"default-value,optional"`
}

// ObjectPropertyValue is a property with its value, if it can be read.
type ObjectPropertyValue struct {
	Name  string `qapi:"name"`
	Type  string `qapi:"type"`
	Value any    `qapi:"value,optional"`
}

// ObjectPropertiesValues are the properties of one object.
type ObjectPropertiesValues struct {
	Properties []ObjectPropertyValue `qapi:"properties"`
}

// ObjectTypeInfo describes a type of objects.
type ObjectTypeInfo struct {
	Name string `qapi:"name"`
	// Absent for types that are not.
	Abstract *bool `qapi:"abstract"`
	// Absent for a root of the hierarchy.
	Parent *string `qapi:"parent"`
}
