//! The fake of EC2 as its clients meet it: the query protocol and the metadata service, over a socket, with no SDK between.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

/// `sluice-tests fakes ec2`, ended with the test.
struct Fake {
    child: Child,
    faces: Vec<Value>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Fake {
    fn start(options: &[&str]) -> Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluice-tests"))
            .args(["fakes", "ec2"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("stdout")?;
        let mut fake = Self { child, faces: Vec::new() };
        for line in BufReader::new(out).lines().take(4) {
            fake.faces.push(serde_json::from_str(&line?)?);
        }
        ensure!(fake.faces.len() == 4, "four faces, not {:?}", fake.faces);
        Ok(fake)
    }

    fn fact(&self, face: &str, name: &str) -> &str {
        self.faces.iter().find(|f| f["face"] == face).and_then(|f| f[name].as_str()).unwrap_or_default()
    }

    fn id(&self, name: &str) -> &str {
        self.fact("world", name)
    }

    fn http(&self, face: &str, head: &str, headers: &str, body: &str) -> Result<(u16, String)> {
        let host = self.fact(face, "url").trim_start_matches("http://");
        let mut stream = TcpStream::connect(host)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "{head} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no end of the headers")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    fn ec2(&self, action: &str, parameters: &str) -> Result<(u16, String)> {
        let date = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let headers = format!(
            "authorization: AWS4-HMAC-SHA256 Credential=AKIATEST/20260101/eu-central-1/ec2/aws4_request, \
             SignedHeaders=host, Signature=0\r\nx-amz-date: {date}\r\n"
        );
        self.http("ec2", "POST /", &headers, &format!("Action={action}&Version=2016-11-15{parameters}"))
    }

    fn ok(&self, action: &str, parameters: &str) -> Result<String> {
        let (status, text) = self.ec2(action, parameters)?;
        ensure!(status == 200, "{action}{parameters}: {status} {text}");
        Ok(text)
    }

    /// The code of a refusal.
    fn refused(&self, action: &str, parameters: &str) -> Result<String> {
        let (status, text) = self.ec2(action, parameters)?;
        ensure!(status >= 400, "{action}{parameters} went through: {text}");
        element(&text, "Code")
    }

    fn create(&self, subnet: &str) -> Result<String> {
        element(
            &self.ok("CreateNetworkInterface", &format!("&SubnetId={}", self.id(subnet)))?,
            "networkInterfaceId",
        )
    }

    fn attach(&self, eni: &str, device: u32) -> String {
        format!("&NetworkInterfaceId={eni}&InstanceId={}&DeviceIndex={device}", self.id("instance"))
    }
}

fn element(xml: &str, name: &str) -> Result<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>")).with_context(|| format!("no {name} in {xml}"))?;
    Ok(rest.split('<').next().unwrap_or_default().to_owned())
}

#[test]
fn the_limits_of_an_instance_type_hold() -> Result<()> {
    // m5.large: 3 ENIs of 10 addresses.
    let fake = Fake::start(&["--instant", "--instance-type", "m5.large"])?;
    let first = fake.create("subnet")?;
    for (eni, device) in [(first.clone(), 1), (fake.create("subnet")?, 2)] {
        fake.ok("AttachNetworkInterface", &fake.attach(&eni, device))?;
    }
    let third = fake.create("subnet")?;
    assert_eq!(fake.refused("AttachNetworkInterface", &fake.attach(&third, 3))?, "AttachmentLimitExceeded");
    let more = |n| format!("&NetworkInterfaceId={first}&SecondaryPrivateIpAddressCount={n}");
    fake.ok("AssignPrivateIpAddresses", &more(9))?;
    assert_eq!(fake.refused("AssignPrivateIpAddresses", &more(1))?, "PrivateIpAddressLimitExceeded");
    Ok(())
}

#[test]
fn a_fragmented_subnet_has_addresses_and_no_prefix() -> Result<()> {
    let fake = Fake::start(&["--instant", "--fragmented"])?;
    let eni = fake.create("pod-subnet")?;
    let prefix = format!("&NetworkInterfaceId={eni}&Ipv4PrefixCount=1");
    assert_eq!(fake.refused("AssignPrivateIpAddresses", &prefix)?, "InsufficientCidrBlocks");
    fake.ok(
        "AssignPrivateIpAddresses",
        &format!("&NetworkInterfaceId={eni}&SecondaryPrivateIpAddressCount=1"),
    )?;
    Ok(())
}

#[test]
fn an_attached_eni_is_not_deleted() -> Result<()> {
    let fake = Fake::start(&["--instant"])?;
    let eni = fake.create("subnet")?;
    let attachment = element(&fake.ok("AttachNetworkInterface", &fake.attach(&eni, 1))?, "attachmentId")?;
    let delete = format!("&NetworkInterfaceId={eni}");
    let (status, text) = fake.ec2("DeleteNetworkInterface", &delete)?;
    assert_eq!(status, 400);
    assert!(text.contains("currently in use"), "{text}");
    fake.ok("DetachNetworkInterface", &format!("&AttachmentId={attachment}"))?;
    fake.ok("DeleteNetworkInterface", &delete)?;
    assert_eq!(fake.refused("DeleteNetworkInterface", &delete)?, "InvalidNetworkInterfaceID.NotFound");
    Ok(())
}

#[test]
fn pages_together_are_everything_once() -> Result<()> {
    let fake = Fake::start(&["--instant"])?;
    for _ in 0..7 {
        fake.create("subnet")?;
    }
    let (mut seen, mut pages, mut next) = (Vec::new(), 0, String::new());
    loop {
        let text = fake.ok("DescribeNetworkInterfaces", &format!("&MaxResults=5{next}"))?;
        seen.extend(
            text.split("<networkInterfaceId>").skip(1).filter_map(|t| t.split('<').next().map(str::to_owned)),
        );
        pages += 1;
        ensure!(pages < 10, "pages without end");
        let Ok(token) = element(&text, "nextToken") else { break };
        next = format!("&NextToken={token}");
    }
    assert_eq!((seen.len(), pages), (8, 2));
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 8);
    Ok(())
}

#[test]
fn an_empty_bucket_throttles() -> Result<()> {
    let fake = Fake::start(&["--instant", "--throttle", "2,0"])?;
    for _ in 0..2 {
        fake.ok("DescribeSubnets", "")?;
    }
    assert_eq!(fake.refused("DescribeSubnets", "")?, "RequestLimitExceeded");
    fake.ok("DescribeNetworkInterfaces", "")?;
    Ok(())
}

#[test]
fn what_the_policy_does_not_grant_is_denied() -> Result<()> {
    let fake = Fake::start(&["--deny", "CreateNetworkInterface"])?;
    let create = format!("&SubnetId={}", fake.id("subnet"));
    assert_eq!(fake.refused("CreateNetworkInterface", &create)?, "UnauthorizedOperation");
    assert_eq!(fake.refused("DescribeVpcs", "")?, "UnauthorizedOperation");
    assert_eq!(fake.refused("DescribeSubnets", "&Colour=red")?, "UnknownParameter");
    let granted = Fake::start(&["--allow", "DescribeVpcs"])?;
    granted.ok("DescribeVpcs", "")?;
    Ok(())
}

#[test]
fn a_clock_that_is_off_is_told() -> Result<()> {
    assert_eq!(Fake::start(&["--clock-ahead", "1000"])?.refused("DescribeSubnets", "")?, "RequestExpired");
    Ok(())
}

#[test]
fn the_metadata_wants_a_token_and_shows_an_eni_later_than_ec2() -> Result<()> {
    let fake = Fake::start(&[])?;
    let macs = "GET /latest/meta-data/network/interfaces/macs/";
    assert_eq!(fake.http("imds", macs, "", "")?.0, 401);
    let ttl = "x-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    let (status, token) = fake.http("imds", "PUT /latest/api/token", ttl, "")?;
    assert_eq!(status, 200);
    let count = || -> Result<usize> {
        let header = format!("x-aws-ec2-metadata-token: {token}\r\n");
        Ok(fake.http("imds", macs, &header, "")?.1.lines().count())
    };
    assert_eq!(count()?, 1);
    let eni = fake.create("subnet")?;
    fake.ok("AttachNetworkInterface", &fake.attach(&eni, 1))?;
    assert_eq!(count()?, 1, "an ENI is in the metadata before it is attached");
    for _ in 0..200 {
        if count()? == 2 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("after 20 s the metadata does not show the ENI")
}
