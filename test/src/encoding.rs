//! Encodings that a test writes by hand: LEB128 numbers, which WebAssembly and protocol buffers share, and fields of messages
//! without generated code.

/// A number in LEB128.
pub(crate) fn leb(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).expect("seven bits");
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// A string field of a protocol buffer message.
pub fn field(number: u8, text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("a short string");
    [&[number << 3 | 2][..], &leb(length), text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_field_carries_its_length() {
        assert_eq!(field(3, "ab"), [0x1a, 2, b'a', b'b']);
        assert_eq!(field(7, &"x".repeat(200))[..3], [0x3a, 0xc8, 1]);
    }
}
