//! A `moto_server`, and an instance in it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const REGION: &str = "eu-central-1";

/// A server; it ends with this.
pub(crate) struct Moto {
    process: Child,
    address: SocketAddr,
    pub(crate) instance: String,
    pub(crate) vpc: String,
    pub(crate) instance_type: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let installed = Command::new(root.join("tests/pypi")).arg("moto").output().unwrap();
    assert!(installed.status.success(), "tests/pypi moto: {}", String::from_utf8_lossy(&installed.stderr));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    root.join(target).join("pypi/moto/bin/moto_server")
}

impl Moto {
    /// Starts a server with a VPC, a subnet of 4,096 addresses, and an instance.
    pub(crate) fn start(instance_type: &str) -> Self {
        let program = program();
        // A port that was free a moment ago; somebody may have taken it since, and then there is another one.
        for _ in 0..5 {
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
            let mut process = Command::new(&program)
                .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
                .env("AWS_DEFAULT_REGION", REGION)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            while process.try_wait().unwrap().is_none() {
                if TcpStream::connect(address).is_ok() {
                    let mut moto = Self {
                        process,
                        address,
                        instance: String::new(),
                        vpc: String::new(),
                        instance_type: instance_type.to_owned(),
                    };
                    moto.furnish();
                    return moto;
                }
                assert!(Instant::now() < deadline, "moto_server does not listen");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        panic!("moto_server ends by itself");
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn furnish(&mut self) {
        self.vpc = element(&self.call("CreateVpc", &[("CidrBlock", "10.0.0.0/16")]), "vpcId");
        let zone = format!("{REGION}a");
        let made = self.call(
            "CreateSubnet",
            &[("VpcId", &self.vpc), ("CidrBlock", "10.0.0.0/20"), ("AvailabilityZone", &zone)],
        );
        let subnet = element(&made, "subnetId");
        let shape = self.instance_type.clone();
        let run = self.call(
            "RunInstances",
            &[
                ("ImageId", "ami-12c6146b"),
                ("MinCount", "1"),
                ("MaxCount", "1"),
                ("InstanceType", &shape),
                ("SubnetId", &subnet),
            ],
        );
        self.instance = element(&run, "instanceId");
    }

    /// A call that the client has no words for, unsigned: moto reads the region from the header, and checks nothing.
    fn call(&self, action: &str, parameters: &[(&str, &str)]) -> String {
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.append_pair("Action", action).append_pair("Version", "2016-11-15").extend_pairs(parameters);
        let body = body.finish();
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: ec2.{REGION}.amazonaws.com\r\nConnection: close\r\n\
             Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\nContent-Length: {}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/{REGION}/ec2/aws4_request, SignedHeaders=host, Signature=x\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{action}: {answer}");
        answer
    }
}

/// The text of the first element of a name.
fn element(answer: &str, name: &str) -> String {
    let rest = answer.split_once(&format!("<{name}>")).unwrap_or_else(|| panic!("no {name}: {answer}")).1;
    rest.split_once('<').unwrap().0.to_owned()
}
