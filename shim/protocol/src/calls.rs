//! The call socket: how an engine process that was made for an exec asks the engine of the container's guest for something.
//!
//! The shim listens in the container's bundle, where only root comes, and passes the listening socket to the guest's engine. For an exec
//! it connects and passes the connection to the exec's engine. Each connection is one question. The asking side sends a
//! [`Question`] in a first frame of [`Frame::QUESTION`], then its input; the other side replies with output, and last with the exit code.
//!
//! Either side may have been taken over by its guest. So each takes the other for a stranger: a frame is bounded in length, a connection
//! in what it may keep waiting, and no frame makes the receiver do more than its kind says.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The longest content of a frame, in bytes. What is longer is sent in several frames, a question cannot be.
pub const FRAME_BYTES_MAX: usize = 64 << 10;

/// What is asked of the engine of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Calls of functions: the arguments behind `invoke`. Without an expression among them, the input has one in each line.
    Invoke(Vec<String>),
    /// What the guest does and has: the arguments behind `skiff`.
    Look(Vec<String>),
}

/// The head of a frame: what it is, and how much content follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// One of the constants below.
    pub kind: u8,
    /// The length of the content, in bytes, at most [`FRAME_BYTES_MAX`].
    pub length: usize,
}

impl Frame {
    /// A [`Question`] as JSON; the first frame of a connection.
    pub const QUESTION: u8 = b'Q';
    /// Input of the asking process. An empty one is its end.
    pub const INPUT: u8 = b'I';
    /// Goes to the asking process's stdout.
    pub const OUTPUT: u8 = b'O';
    /// Goes to the asking process's stderr.
    pub const ERROR: u8 = b'E';
    /// The exit code of the asking process, in one byte; the last frame of a connection.
    pub const EXIT: u8 = b'X';

    /// How long an encoded head is, in bytes.
    pub const HEAD_BYTES: usize = 5;

    /// The head of a frame with `length` bytes of content.
    ///
    /// # Errors
    /// `InvalidInput` for more than [`FRAME_BYTES_MAX`].
    pub fn encode(kind: u8, length: usize) -> io::Result<[u8; Self::HEAD_BYTES]> {
        let bytes = u32::try_from(length).ok().filter(|_| length <= FRAME_BYTES_MAX);
        let bytes = bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a frame that is too long"))?;
        let [a, b, c, d] = bytes.to_le_bytes();
        Ok([kind, a, b, c, d])
    }

    /// Parses the head of a frame.
    ///
    /// # Errors
    /// `InvalidData` if more content is announced than a frame may have.
    pub fn decode(head: [u8; Self::HEAD_BYTES]) -> io::Result<Self> {
        let [kind, a, b, c, d] = head;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok().filter(|length| *length <= FRAME_BYTES_MAX);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame that is too long"))?;
        Ok(Self { kind, length })
    }

    /// Writes `content` in as many frames of this kind as it takes; an empty one in one.
    ///
    /// # Errors
    /// Those of writing to `writer`.
    pub fn write(kind: u8, content: &[u8], mut writer: impl Write) -> io::Result<()> {
        let mut rest = content;
        loop {
            let (part, others) = rest.split_at(rest.len().min(FRAME_BYTES_MAX));
            writer.write_all(&Self::encode(kind, part.len())?)?;
            writer.write_all(part)?;
            rest = others;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Reads a frame, its content into `content`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the other side is gone; `InvalidData` for a frame that is too long.
    pub fn read(mut reader: impl Read, content: &mut Vec<u8>) -> io::Result<Self> {
        let mut head = [0; Self::HEAD_BYTES];
        reader.read_exact(&mut head)?;
        let frame = Self::decode(head)?;
        content.resize(frame.length, 0);
        reader.read_exact(content)?;
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_reads_back() {
        for length in [0, 1, FRAME_BYTES_MAX] {
            let mut bytes = Vec::new();
            Frame::write(Frame::OUTPUT, &vec![7; length], &mut bytes).unwrap();
            let mut content = vec![1; 3];
            let frame = Frame::read(&bytes[..], &mut content).unwrap();
            assert_eq!((frame, content), (Frame { kind: Frame::OUTPUT, length }, vec![7; length]));
        }
    }

    #[test]
    fn what_is_too_long_for_a_frame_is_sent_in_several() {
        let mut bytes = Vec::new();
        Frame::write(Frame::INPUT, &vec![7; FRAME_BYTES_MAX + 1], &mut bytes).unwrap();
        let (mut reader, mut content) = (&bytes[..], Vec::new());
        assert_eq!(Frame::read(&mut reader, &mut content).unwrap().length, FRAME_BYTES_MAX);
        assert_eq!(Frame::read(&mut reader, &mut content).unwrap().length, 1);
        assert_eq!(Frame::read(reader, &mut content).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nobody_makes_the_other_side_take_more_than_a_frame() {
        let head = [Frame::INPUT, 1, 0, 1, 0];
        assert_eq!(Frame::read(&head[..], &mut Vec::new()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(Frame::encode(Frame::INPUT, FRAME_BYTES_MAX + 1).is_err());
    }
}
