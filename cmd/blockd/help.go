package main

const usage = `Usage: %s [options]
A storage daemon: QMP in, jobs over disk images, events out

  -h, --help             display this help and exit
  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]
                         log trace events; -T help lists them
  -V, --version          output version information and exit

  --allow-path <path>    only open images that are <path> or below it; may be
                         given several times
  --blockdev [driver=]<driver>[,node-name=<N>][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap]
             [,driver specific parameters...]
                         open a block node; JSON works, too
  --chardev <options>    make a character device: socket, stdio, null, file
  --daemonize            run in the background; the parent exits once start-up
                         is complete
  --export [type=]nbd,id=<id>,node-name=<node-name>[,name=<export-name>]
           [,writable=on|off]
                         export a block node over NBD (requires --nbd-server)
  --export [type=]fuse,id=<id>,node-name=<node-name>,mountpoint=<file>
           [,growable=on|off][,writable=on|off][,allow-other=on|off|auto]
                         have a file show a block node as a raw disk
  --graph-history <n>    keep the last <n> changes of the block graph
  --log [level=]debug|info|warning|error[,subsystem=<name>]
        [,sink=memory|output][,format=text|json][,file=<path>]
                         what is logged, and where to; may be given several
                         times
  --monitor [chardev=]<name>[,mode=control][,pretty[=on|off]]
                         serve QMP on a character device
  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>
               [,max-connections=<n>]
  --nbd-server addr.type=unix,addr.path=<path>[,max-connections=<n>]
                         start the NBD server
  --object <type>,id=<id>[,<property>=<value>...]
                         create an object
  --pidfile <path>       write the process id to a file after start-up
  --scratch [directory=]<path>[,memory=<bytes>][,max-size=<bytes>]
                         where backups keep what guests overwrite, until a
                         slow target has taken it
  --web [addr=]<ip>:<port>|unix:<path>[,qmp=on|off][,pprof=on|off]
        [,token-file=<path>]
        [,role=read-only|control][,tls-creds=<id>|,tls-dir=<path>
        [,tls-verify-peer=on|off]][,tls-authz=<id>]
                         serve metrics over HTTP and, with qmp=on, QMP over
                         WebSocket: on this machine only, unless with TLS and
                         with tokens or certificates of clients

Options are worked off in their order.
`

// welcome is what a person sees who starts blockd on a terminal without
// arguments; elsewhere it runs, as qemu-storage-daemon does.
const welcome = `blockd is a storage daemon: it opens disk images, lets guests use them over NBD,
and runs jobs over them while the guests go on.

Export an image, with a monitor to talk to:

  blockd --chardev socket,id=qmp,path=/tmp/qmp.sock,server=on,wait=off --monitor qmp \
      --blockdev qcow2,node-name=disk,file.driver=file,file.filename=DISK.qcow2 \
      --nbd-server addr.type=unix,addr.path=/tmp/nbd.sock \
      --export nbd,id=e0,node-name=disk,name=disk,writable=on

Then, from another terminal:

  blockd graph /tmp/qmp.sock               what is open, and who uses it
  blockd backup /tmp/qmp.sock disk COPY    back it up while it is in use
  blockd jobs /tmp/qmp.sock --watch        what is going on
  blockd shell /tmp/qmp.sock               any command, with completion

blockd serve does the same with fewer words and a configuration file:

  blockd serve --dir . --qmp qmp.sock --nbd unix:nbd.sock --web 127.0.0.1:8080

blockd --help lists the daemon's options, blockd help the subcommands.
`
