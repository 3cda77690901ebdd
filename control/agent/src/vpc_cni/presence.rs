//! Is ipamd still here? Two owners of one node's addresses would give them out twice, so the agent asks before anything else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long ipamd may take to answer: it is on this node.
const PATIENCE: Duration = Duration::from_secs(2);
/// More of an answer than this is not read: a full node's is some 100 kB.
const MOST: u64 = 4 << 20;

/// The VPC CNI still runs on this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the VPC CNI still runs on this node: {found}. Two of them would give addresses out twice. Remove it first: \
     `kubectl --namespace kube-system delete daemonset aws-node` (or `aws eks delete-addon --cluster-name NAME --addon-name vpc-cni`), \
     wait until `kubectl --namespace kube-system get pods --selector k8s-app=aws-node` lists none, then install Sluice \
     (docs/runbooks/migrate.md); pods keep their addresses meanwhile"
)]
pub struct Present {
    /// What answered where.
    pub found: String,
}

/// Looks for ipamd: its introspection at `address`, its socket at `socket`.
///
/// # Errors
/// It is there.
pub fn refuse(address: SocketAddr, socket: &Path) -> Result<(), Present> {
    if let Some(found) = introspection(address) {
        return Err(Present { found });
    }
    if UnixStream::connect(socket).is_ok() {
        return Err(Present { found: format!("somebody listens on its socket {}", socket.display()) });
    }
    Ok(())
}

/// Whether what answers is ipamd. Somebody else may have the port by now: only ipamd tells of ENIs.
fn introspection(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    // In one piece: who answers before the last piece has come resets the connection, and the answer with it.
    let asked = stream.write_all(format!("GET /v1/enis HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes());
    let mut answer = Vec::new();
    // An answer that is cut short is looked at all the same.
    let _ = asked.and_then(|()| stream.take(MOST).read_to_end(&mut answer).map(drop));
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let is_ipamd = head.starts_with("HTTP/1.") && body.contains("\"TotalIPs\"");
    is_ipamd.then(|| format!("ipamd answers at http://{address}/v1/enis"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;

    /// Answers one connection with these bytes.
    fn serve(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn ipamd_is_known_by_what_it_tells_and_a_stranger_on_its_port_is_not_it() {
        let nowhere = PathBuf::from("/nowhere/ipamd.sock");
        let ipamd = serve(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"TotalIPs\":9,\"AssignedIPs\":3}",
        );
        let said = refuse(ipamd, &nowhere).unwrap_err().to_string();
        assert!(said.contains(&ipamd.to_string()) && said.contains("delete daemonset aws-node"), "{said}");
        for stranger in ["HTTP/1.1 404 Not Found\r\n\r\nnot here", "SSH-2.0-OpenSSH_9.2\r\n", ""] {
            assert_eq!(refuse(serve(stranger), &nowhere), Ok(()));
        }
        // Nobody there.
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(refuse(gone, &nowhere), Ok(()));
    }

    #[test]
    fn a_socket_counts_when_somebody_listens_and_not_when_it_was_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ipamd.sock");
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(refuse(gone, &path).unwrap_err().found.contains("ipamd.sock"));
        drop(listener);
        assert!(path.exists());
        assert_eq!(refuse(gone, &path), Ok(()));
    }
}
