// Lets pipe.go, gateway.go, resolver.go and copies.go declare functions that another package has.
