//! A server with a poll loop of its own: each connection gets a process, whose stdin and stdout the socket is. A client that hangs up
//! ends its process and what that started. No thread, no callback: the loop polls the reactor's descriptor beside its listener.
//!
//! ```sh
//! cargo run --example inetd -- 127.0.0.1:7777 sh -c 'echo hello; exec cat'
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use pidloop::{ChildId, Command, Context, Reactor, When};
use rustix::event::{PollFd, PollFlags, poll};

fn start(jobs: &mut Reactor, argv: &[String], socket: TcpStream) -> Result<ChildId, Box<dyn Error>> {
    let socket = OwnedFd::from(socket);
    let client = Context::from_fd(socket.try_clone()?, When::PeerClosed)?;
    let output = socket.try_clone()?;
    // The `Command` is dropped here, and with it our copies of the socket: the client sees the end when its process has ended.
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).stdin(socket).stdout(output).group().context(&client);
    Ok(jobs.spawn(&command)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut argv: Vec<String> = std::env::args().skip(1).collect();
    if argv.len() < 2 {
        return Err("usage: inetd ADDRESS:PORT COMMAND [ARGUMENT]...".into());
    }
    let listener = TcpListener::bind(argv.remove(0))?;
    listener.set_nonblocking(true)?;
    let mut jobs = Reactor::new()?;
    let mut clients: HashMap<ChildId, SocketAddr> = HashMap::new();
    loop {
        let mut fds = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&jobs, PollFlags::IN)];
        poll(&mut fds, None)?;
        if let Ok((socket, address)) = listener.accept() {
            match start(&mut jobs, &argv, socket) {
                Ok(id) => drop(clients.insert(id, address)),
                Err(error) => eprintln!("{address}: {error}"),
            }
        }
        jobs.turn(Some(Duration::ZERO))?;
        while let Some(ended) = jobs.next_exit() {
            let client = clients.remove(&ended.id()).map_or_else(String::new, |address| address.to_string());
            match ended.exit().cause() {
                Some(cause) => eprintln!("{client}: {} ({cause})", ended.exit()),
                None => eprintln!("{client}: {}", ended.exit()),
            }
        }
    }
}
