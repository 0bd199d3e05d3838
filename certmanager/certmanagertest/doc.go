// Package certmanagertest gives a test an ACME authority in its own process, with the
// DNS that it asks, everything that goes wrong at one, and a contract that every
// issuer keeps.
//
//	a := certmanagertest.NewAuthority(t, certmanagertest.Options{})
//	// a.URL is its directory and a.Trust what its HTTPS is trusted by.
//	// a.DNS.Addr, a.DNS.Key and a.DNS.Secret are for a provider of RFC 2136.
//	a.AnswerHTTP(lb1, lb2) // who answers http-01
//	stop := a.Fail(certmanagertest.Fault{Every: 20, Answer: certmanagertest.Unavailable()})
//	…
//	if n := a.Orders("www.example.test", "example.test"); n != 1 { … }
//
// One certificate in 128 has a serial number that Pebble does not find when an order
// replaces it: it answers such an order with serverInternal.
//
// The authority is Pebble, which is for tests alone: no program may link this
// package.
package certmanagertest
