//! Kubernetes' grammar of names, with its messages. Each function lists all that is wrong, in the API server's order.

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
    an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED: &str = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and \
    end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
    must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// The name of most objects.
pub(super) fn subdomain(text: &str) -> Vec<String> {
    let mut whys = too_long(text, 253);
    let label = |l: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        l.starts_with(plain) && l.ends_with(plain) && l.chars().all(|c| plain(c) || c == '-')
    };
    if !text.split('.').all(label) {
        whys.push(SUBDOMAIN.to_owned());
    }
    whys
}

/// The key of a label: `prefix/name`, or a name alone.
pub(super) fn label_key(text: &str) -> Vec<String> {
    let mut whys = Vec::new();
    let name = match text.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                whys.push("prefix part must be non-empty".to_owned());
            } else {
                whys.extend(subdomain(prefix).into_iter().map(|why| format!("prefix part {why}")));
            }
            name
        }
        _ => return vec![QUALIFIED.to_owned()],
    };
    if name.is_empty() {
        whys.push("name part must be non-empty".to_owned());
    }
    whys.extend(too_long(name, 63).into_iter().map(|why| format!("name part {why}")));
    if !qualified(name) {
        whys.push(NAME_PART.to_owned());
    }
    whys
}

/// The value of a label.
pub(super) fn label_value(text: &str) -> Vec<String> {
    let mut whys = too_long(text, 63);
    if !text.is_empty() && !qualified(text) {
        whys.push(VALUE.to_owned());
    }
    whys
}

/// The name of a port (IANA service name, RFC 6335 §5.1).
pub(super) fn port(text: &str) -> Vec<String> {
    let mut whys = too_long(text, 15);
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
        whys.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.contains(|c: char| c.is_ascii_lowercase()) {
        whys.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        whys.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        whys.push("must not begin or end with a hyphen".to_owned());
    }
    whys
}

fn qualified(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(edge) && text.ends_with(edge) && text.chars().all(inner)
}

fn too_long(text: &str, most: usize) -> Vec<String> {
    if text.len() > most { vec![format!("must be no more than {most} characters")] } else { Vec::new() }
}
