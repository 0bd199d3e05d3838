package journal

import "testing"

// FuzzNotes takes up any note of what was done with messages: whoever may write to the
// account's streams can write one.
func FuzzNotes(f *testing.F) {
	f.Add([]byte(`{"low":3,"done":[5,6],"runs":[[8,9],[12,11]],"handed":20}`))
	f.Add([]byte(`{"runs":[[18446744073709551615,0]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		j := &Journal{notes: map[string]*notes{}}
		for range 2 {
			if err := j.noted("q", data); err != nil {
				return
			}
		}
	})
}
