// Package serve is `blockd serve`: the daemon for people, with a few options
// and a configuration file. It makes of them the same options that the drop-in
// command line has (daemon.Option), and the program works those off: there is no
// second way to set a daemon up.
//
// What is different from the drop-in command line: unix sockets are this user's
// alone unless options say otherwise, a socket at which somebody listens is not
// taken away, and SIGHUP reads tokens and credentials again and opens the log's file anew.
//
// No locks. It reads the configuration file. Imports cli, daemon, qapi and
// sockets.
//
//blockd:blocking
package serve
