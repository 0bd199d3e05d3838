// Lets pipe.go and gateway.go declare functions that another package has.
