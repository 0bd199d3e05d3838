// Lets pipe.go, gateway.go and resolver.go declare functions that another package has.
