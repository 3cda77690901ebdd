//! As much of RFC 1035 as one A question and its answer take. Whatever is longer, deeper or stranger is no message here.

use std::net::Ipv4Addr;

/// Bytes before the question.
const HEADER: usize = 12;
/// Type A, class IN.
const A_IN: [u8; 4] = [0, 1, 0, 1];
/// Seconds for which an answer may be kept.
const TTL: u32 = 5;

/// A question for a name's address; none where the name is no name (RFC 1035 §2.3.4).
pub(crate) fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(HEADER + name.len() + 6);
    message.extend_from_slice(&id.to_be_bytes());
    // Recursion is desired; one question.
    message.extend_from_slice(&[0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    let name = name.trim_end_matches('.');
    if name.is_empty() || name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n))?;
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&A_IN);
    Some(message)
}

/// What a message answers to the question of this id: an address, or that there is none. Nothing where it is no answer
/// to it, or one that says neither (a failing server).
pub(crate) fn answer(id: u16, message: &[u8]) -> Option<Option<Ipv4Addr>> {
    let head = message.get(..HEADER)?;
    let is_response = head[2] & 0x80 != 0;
    if head[..2] != id.to_be_bytes() || !is_response {
        return None;
    }
    match head[3] & 0x0f {
        0 => {}
        // NXDOMAIN
        3 => return Some(None),
        _ => return None,
    }
    let count = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let mut at = HEADER;
    for _ in 0..count(4) {
        at = skip_name(message, at)? + 4;
    }
    for _ in 0..count(6) {
        at = skip_name(message, at)?;
        let fixed = message.get(at..at + 10)?;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = message.get(at + 10..at + 10 + length)?;
        if fixed[..4] == A_IN
            && let [a, b, c, d] = *data
        {
            return Some(Some(Ipv4Addr::new(a, b, c, d)));
        }
        at += 10 + length;
    }
    // The name is there, an address of it is not.
    Some(None)
}

/// The answer to a message, from what `find` knows; none for what is no question.
pub(crate) fn respond(message: &[u8], find: impl Fn(&str) -> Option<Ipv4Addr>) -> Option<Vec<u8>> {
    let head = message.get(..HEADER)?;
    let is_query = head[2] & 0xf8 == 0;
    if !is_query || head[4..6] != [0, 1] {
        return None;
    }
    let (name, end) = read_name(message, HEADER)?;
    let kind = message.get(end..end + 4)?;
    let known = find(&name);
    let address = known.filter(|_| kind == A_IN);
    let mut answer = message.get(..end + 4)?.to_vec();
    // Response, authoritative, recursion as it was desired; a name that is not there is NXDOMAIN.
    answer[2] = 0x84 | (head[2] & 0x01);
    answer[3] = if known.is_some() { 0 } else { 3 };
    answer[6..HEADER].copy_from_slice(&[0, u8::from(address.is_some()), 0, 0, 0, 0]);
    if let Some(address) = address {
        // The name is the one at the question's place (RFC 1035 §4.1.4).
        answer.extend_from_slice(&[0xc0, 0x0c]);
        answer.extend_from_slice(&A_IN);
        answer.extend_from_slice(&TTL.to_be_bytes());
        answer.extend_from_slice(&[0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    Some(answer)
}

/// A name without pointers, and where it ends: a question's name is the first, there is nothing to point to.
fn read_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        if length > 63 || name.len() + length > 253 {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(message.get(at..at + length)?).ok()?);
        at += length;
    }
}

/// Where a name ends; a pointer ends it.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let length = *message.get(at)?;
        match length {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: Ipv4Addr = Ipv4Addr::new(10, 100, 3, 4);

    fn find(name: &str) -> Option<Ipv4Addr> {
        (name == "frontend.stars").then_some(THERE)
    }

    #[test]
    fn a_question_comes_back_with_its_address_or_with_none() {
        let asked = question(0x1234, "frontend.stars.").unwrap();
        assert_eq!(answer(0x1234, &respond(&asked, find).unwrap()), Some(Some(THERE)));
        assert_eq!(answer(0x1235, &respond(&asked, find).unwrap()), None, "another id");
        assert_eq!(answer(0x1234, &asked), None, "a question is no answer");
        let other = question(9, "nobody").unwrap();
        assert_eq!(answer(9, &respond(&other, find).unwrap()), Some(None));
    }

    #[test]
    fn an_ipv6_question_for_a_known_name_is_answered_without_an_address() {
        let mut asked = question(5, "frontend.stars").unwrap();
        let kind = asked.len() - 4;
        asked[kind..kind + 2].copy_from_slice(&[0, 28]);
        let answered = respond(&asked, find).unwrap();
        assert_eq!(answered[3] & 0x0f, 0, "no NXDOMAIN: the name is there");
        assert_eq!(answer(5, &answered), Some(None));
    }

    #[test]
    fn a_name_that_is_none_is_not_asked() {
        for bad in ["", ".", "a..b", &"x".repeat(64), &"abcdefg.".repeat(40)] {
            assert_eq!(question(1, bad), None, "{bad}");
        }
    }

    #[test]
    fn nothing_that_is_cut_or_bent_panics() {
        let asked = question(1, "frontend.stars").unwrap();
        let answered = respond(&asked, find).unwrap();
        for message in [&asked, &answered] {
            for cut in 0..message.len() {
                let _ = (respond(&message[..cut], find), answer(1, &message[..cut]));
                for bit in 0..8 {
                    let mut bent = message.clone();
                    bent[cut] ^= 1 << bit;
                    let _ = (respond(&bent, find), answer(1, &bent));
                }
            }
        }
    }
}
