// Lets pipe.go declare a function that another package has.
