"""The small programs that rda runs on the remote host, in whatever interpreter it has: python3, else perl. Pure.

Nothing is installed there: a program's source is in its command. It takes what it has to know over standard input, says
:data:`READY` first, and ends with its input, and so with the link. (socat can do neither: it does not keep the
boundaries of datagrams, nor does it say that it listens.)
"""

from __future__ import annotations

__all__ = ["EXPOSE_PERL", "EXPOSE_PYTHON", "NO_INTERPRETER", "READY", "RELAY_PERL", "RELAY_PYTHON", "command"]

#: Every program's first words.
READY = b"RDA1\n"

#: The exit status of a :func:`command` where no interpreter is found: the shell's own for that.
NO_INTERPRETER = 127

# Datagrams: see rda.ports.udp.

RELAY_PYTHON = r"""
import os, select, socket, struct
def write(data):
    while data:
        data = data[os.write(1, data):]
write(b"RDA1\n")
held, port, sockets, flows = b"", None, {}, {}
while True:
    for ready in select.select([0, *flows], [], [])[0]:
        if ready:
            try:
                data = ready.recv(65535)
            except OSError:
                continue
            if ready in flows:
                write(struct.pack(">BIH", 0, flows[ready], len(data)) + data)
            continue
        data = os.read(0, 65536)
        if not data:
            raise SystemExit
        held += data
        if port is None:
            if len(held) < 2:
                continue
            port, held = struct.unpack(">H", held[:2])[0], held[2:]
        while len(held) >= 7:
            kind, flow, length = struct.unpack(">BIH", held[:7])
            if len(held) < 7 + length:
                break
            data, held = held[7:7 + length], held[7 + length:]
            if kind:
                gone = sockets.pop(flow, None)
                if gone:
                    del flows[gone]
                    gone.close()
                continue
            try:
                if flow not in sockets:
                    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    made.setblocking(False)
                    made.connect(("127.0.0.1", port))
                    sockets[flow], flows[made] = made, flow
                sockets[flow].send(data)
            except OSError:
                pass
"""

RELAY_PERL = r"""
use Socket;
sub out { my $o = shift; while (length $o) { my $w = syswrite(STDOUT, $o); exit 1 unless $w; substr($o, 0, $w) = ""; } }
binmode STDIN; binmode STDOUT;
out("RDA1\n");
my ($held, $port, %sockets) = ("", 0);
while (1) {
    my $ready = "";
    vec($ready, 0, 1) = 1;
    vec($ready, fileno($_), 1) = 1 for values %sockets;
    next if select($ready, undef, undef, undef) < 0;
    for my $flow (keys %sockets) {
        next unless vec($ready, fileno($sockets{$flow}), 1);
        my $data = "";
        next unless defined recv($sockets{$flow}, $data, 65535, 0);
        out(pack("CNn", 0, $flow, length $data) . $data);
    }
    next unless vec($ready, 0, 1);
    exit 0 unless sysread(STDIN, $held, 65536, length $held);
    if (!$port) { next if length $held < 2; $port = unpack("n", substr($held, 0, 2, "")); }
    while (length $held >= 7) {
        my ($kind, $flow, $length) = unpack("CNn", $held);
        last if length $held < 7 + $length;
        my $data = substr($held, 7, $length);
        substr($held, 0, 7 + $length) = "";
        if ($kind) { delete $sockets{$flow}; next; }
        if (!$sockets{$flow}) {
            socket(my $made, PF_INET, SOCK_DGRAM, 0) or next;
            connect($made, sockaddr_in($port, INADDR_LOOPBACK)) or next;
            $sockets{$flow} = $made;
        }
        send($sockets{$flow}, $data, 0);
    }
}
"""

# Connections to addresses of the remote host, each passed on to a socket: see rda.ports.exposed.

EXPOSE_PYTHON = r"""
import os, socket, sys, threading, time
def pump(source, sink):
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
def join(near, path):
    far = socket.socket(socket.AF_UNIX)
    with near, far:
        try:
            far.connect(path)
        except OSError:
            return
        back = threading.Thread(target=pump, args=(far, near), daemon=True)
        back.start()
        pump(near, far)
        back.join()
def serve(listener, path):
    while True:
        try:
            near = listener.accept()[0]
            threading.Thread(target=join, args=(near, path), daemon=True).start()
        except (OSError, RuntimeError):
            time.sleep(0.1)
def say(text):
    os.write(1, text.encode() + b"\n")
say("RDA1")
paths = []
for line in sys.stdin.buffer:
    if not line.strip():
        break
    address, port, path = line.decode().split()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, int(port)))
        listener.listen(128)
    except OSError as error:
        say(port + " " + error.strerror)
        continue
    paths.append(path)
    threading.Thread(target=serve, args=(listener, path), daemon=True).start()
    say(port + " ok")
sys.stdin.buffer.read()
for path in paths:
    try:
        os.unlink(path)
    except OSError:
        pass
os._exit(0)
"""

EXPOSE_PERL = r"""
use Socket;
$SIG{CHLD} = $SIG{PIPE} = "IGNORE";
setpgrp(0, 0);
sub say_it { syswrite(STDOUT, "$_[0]\n"); }
sub pump {
    my ($source, $sink) = @_;
    my $size;
    while ($size = sysread($source, my $data, 65536)) {
        my $at = 0;
        while ($at < $size) {
            my $sent = syswrite($sink, $data, $size - $at, $at);
            if (!defined $sent) { undef $size; last; }
            $at += $sent;
        }
        last unless defined $size;
    }
    if (defined $size) { shutdown($sink, 1); } else { shutdown($source, 2); shutdown($sink, 2); }
}
say_it("RDA1");
my %at;
while (defined(my $line = readline(STDIN))) {
    chomp $line;
    last if $line eq "";
    my ($address, $port, $path) = split / /, $line;
    my $listener;
    if (socket($listener, PF_INET, SOCK_STREAM, 0)
        && setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, pack("l", 1))
        && bind($listener, sockaddr_in($port, inet_aton($address)))
        && listen($listener, 128)) {
        $at{fileno $listener} = [$listener, $path];
        say_it("$port ok");
    } else {
        say_it("$port $!");
    }
}
while (1) {
    my $ready = "";
    vec($ready, 0, 1) = 1;
    vec($ready, $_, 1) = 1 for keys %at;
    next if select($ready, undef, undef, undef) < 0;
    if (vec($ready, 0, 1)) { last unless sysread(STDIN, my $more, 4096); }
    for my $number (keys %at) {
        next unless vec($ready, $number, 1) && accept(my $near, $at{$number}[0]);
        my $child = fork;
        if (!defined $child || $child) { close $near; next; }
        my $path = $at{$number}[1];
        %at = ();
        close STDIN;
        close STDOUT;
        close STDERR;
        my $far;
        socket($far, PF_UNIX, SOCK_STREAM, 0) && connect($far, sockaddr_un($path)) or exit 0;
        if (fork) { pump($near, $far); } else { pump($far, $near); }
        exit 0;
    }
}
unlink $_->[1] for values %at;
$SIG{TERM} = "IGNORE";
kill "TERM", 0;
"""


def command(python: str, perl: str) -> bytes:
    """Make the command of one program: for any shell; hexadecimal, so that no shell finds anything to expand.

    :param python: its source for python3.
    :param perl: its source for perl.
    """
    in_python = f'exec python3 -c "exec(bytes.fromhex(\\"{python.encode().hex()}\\"))"'
    in_perl = f'exec perl -e "eval pack(q(H*),q({perl.encode().hex()}))"'
    found = "command -v {} >/dev/null 2>&1"
    script = f"if {found.format('python3')}; then {in_python}; elif {found.format('perl')}; then {in_perl}; fi"
    return f"exec sh -c '{script}; exit {NO_INTERPRETER}'".encode("ascii")
