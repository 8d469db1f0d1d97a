// Command sallyport is the whole system in one program: the verbs of its users, and, as re-executions of itself, the core and
// every server of the reference set.
package main

import (
	"os"

	"sallyport/cmd/sallyport/cli"
	"sallyport/scm"
	"sallyport/subsys"
	"sallyport/subsys/csrss"
	"sallyport/subsys/lsass"
	"sallyport/subsys/winlogon"
)

func main() {
	os.Exit(cli.Main(os.Args, []subsys.Server{lsass.Server(), scm.Server(), csrss.Server(), winlogon.Server()}))
}
