//! Counters of the interfaces of a network namespace, from `/proc/<pid>/net/dev` of a process inside: nobody has to
//! enter the namespace.

use super::files::{Dir, Reader, lines, number, words};
use super::summary::{Interface, Network};
use jiff::Timestamp;

/// What upstream never shows: loopback, the node's ends of pods' interfaces, Docker's bridge.
const HIDDEN: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];
/// The interface that stands for the whole.
const DEFAULT: &str = "eth0";

/// What process `id` sees; `None` once it has ended. `proc` is `/proc`.
pub fn read(reader: &mut Reader, proc: &Dir, id: u32) -> Option<Network> {
    let text = reader.read(proc, &format!("{id}/net/dev"))?;
    Some(parse(text))
}

/// The two lines of the heading have no colon behind their first word.
fn parse(text: &[u8]) -> Network {
    let interfaces: Vec<Interface> = lines(text).filter_map(interface).collect();
    let default = interfaces.iter().find(|i| i.name == DEFAULT).cloned();
    Network { time: Timestamp::now(), default, interfaces }
}

/// `  eth0: bytes packets errs drop fifo frame compressed multicast bytes packets errs drop …`
fn interface(line: &[u8]) -> Option<Interface> {
    // A name may hold a colon itself; numbers never do.
    let at = line.iter().rposition(|b| *b == b':')?;
    let name = std::str::from_utf8(line[..at].trim_ascii()).ok()?;
    if HIDDEN.iter().any(|hidden| name.starts_with(hidden)) {
        return None;
    }
    let mut n = [0; 12];
    let mut numbers = words(&line[at + 1..]).map(number);
    for slot in &mut n {
        *slot = numbers.next()??;
    }
    Some(Interface {
        name: name.to_owned(),
        rx_bytes: n[0],
        rx_packets: n[1],
        rx_errors: n[2],
        rx_dropped: n[3],
        tx_bytes: n[8],
        tx_packets: n[9],
        tx_errors: n[10],
        tx_dropped: n[11],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn interfaces_are_read_and_those_upstream_hides_are_left_out() {
        let text = b"Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
            \x20   lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
            vethab: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
            \x20 cni0: 5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n\
            \x20 eth0:1074653676 20 1 2 0 0 0 0 1863821 30 3 4 0 0 0 0\n short: 1 2\n";
        let network = parse(text);
        let names: Vec<&str> = network.interfaces.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["cni0", "eth0"]);
        let eth0 = network.default.unwrap();
        assert_eq!(
            (eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors, eth0.rx_dropped),
            (1_074_653_676, 20, 1, 2)
        );
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors, eth0.tx_dropped), (1_863_821, 30, 3, 4));
    }

    #[test]
    fn a_process_shows_its_namespace_and_one_that_is_gone_nothing() {
        let proc = Dir::open(Path::new("/proc")).unwrap();
        assert!(read(&mut Reader::default(), &proc, std::process::id()).is_some());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(read(&mut Reader::default(), &proc, child.id()), None);
    }
}
