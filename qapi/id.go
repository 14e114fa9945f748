package qapi

// WellFormedID tells whether id may name a node, a job, an export or an object:
// a letter, then letters, digits, '-', '.' and '_'.
func WellFormedID(id string) bool {
	for i, c := range []byte(id) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_')) {
			return false
		}
	}
	return id != ""
}
