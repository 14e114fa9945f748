package qapi

// Or returns what an optional argument says, and d where it is absent.
func Or[T any](p *T, d T) T {
	if p == nil {
		return d
	}
	return *p
}
