//! Names of veths as the VPC CNI makes them: a lease names its pod, and the pod the veth.

use sha1::{Digest as _, Sha1};

/// How a host's end begins where `AWS_VPC_K8S_CNI_VETHPREFIX` is not set (VPC CNI: the same).
pub(crate) const PREFIX: &str = "eni";

/// Hexadecimal digits of the hash that follow the prefix: with four bytes of prefix, all that a name may have.
const DIGITS: usize = 11;

/// The host's end of a pod's veth: the prefix and the beginning of the SHA-1 of `namespace.name` (VPC CNI: the same).
#[must_use]
pub fn host_interface(prefix: &str, namespace: &str, name: &str) -> String {
    let hash = Sha1::digest(format!("{namespace}.{name}"));
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}{}", &digits[..DIGITS])
}

/// Whether a link's name may be a pod's veth of this prefix.
pub(crate) fn is_host_interface(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == DIGITS && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_prefix_and_eleven_digits_of_the_hash() {
        // echo -n default.web-0 | sha1sum
        let name = host_interface(PREFIX, "default", "web-0");
        assert_eq!(name, format!("eni{}", &SHA1_OF_DEFAULT_WEB_0[..11]));
        assert!(is_host_interface(PREFIX, &name));
        for stranger in ["eni0", "eth0", "enizzzzzzzzzzz", "eni0123456789ab", "sluice0"] {
            assert!(!is_host_interface(PREFIX, stranger), "{stranger}");
        }
    }

    const SHA1_OF_DEFAULT_WEB_0: &str = "0d7763386da219ddff1faed1cc6576fb9d57d419";
}
