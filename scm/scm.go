// Package scm is the service controller: it keeps the database of services, starts and stops them in the order of their
// dependencies, restarts what fails, and keeps their logs.
//
// It trusts smss, which forks for it and keeps what must outlive it (processes, exits, log pipes, notify sockets and the
// note on each service's run), and lsass, which makes the services' tokens. It distrusts its callers (package rpc checks
// the rights that scm.proto declares), the services' own processes (each may speak for its service and nothing else, and is
// proven by the kernel, not by a name), and what any of them writes.
//
// The logic is Machine, a pure step machine: no goroutine, clock or call inside. controller is the shell around it: its
// mutex mu owns the machine and all that hangs on it, is a leaf, and is never held over a call.
package scm
