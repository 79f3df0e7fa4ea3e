//! A look at a screen: one raw frame over VNC (RFB 3.8, no authentication), no more.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

/// What a screen shows at one moment.
pub(crate) struct Frame {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Frame {
    /// Asks for the whole screen once.
    pub(crate) fn take(mut stream: TcpStream) -> std::io::Result<Self> {
        read(&mut stream, 12)?;
        stream.write_all(b"RFB 003.008\n")?;
        let kinds = usize::from(read(&mut stream, 1)?[0]);
        read(&mut stream, kinds)?;
        stream.write_all(&[1])?;
        read(&mut stream, 4)?;
        stream.write_all(&[1])?;
        let head = read(&mut stream, 24)?;
        let (width, height) = (short(&head), short(&head[2..]));
        let name = long(&head[20..]);
        read(&mut stream, name)?;
        // 32 bits a pixel, blue first; raw encoding only; all of it.
        stream.write_all(&[0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0])?;
        stream.write_all(&[2, 0, 0, 1, 0, 0, 0, 0])?;
        stream.write_all(&[[3, 0, 0, 0, 0, 0].as_slice(), &head[..4]].concat())?;
        let mut frame = Self { width, height, rgb: vec![0; width * height * 3] };
        let mut seen = 0;
        while seen < width * height {
            // Any other message than an update is short of one byte: a bell.
            if read(&mut stream, 1)?[0] == 0 {
                seen += frame.update(&mut stream)?;
            }
        }
        Ok(frame)
    }

    fn update(&mut self, stream: &mut TcpStream) -> std::io::Result<usize> {
        let mut seen = 0;
        for _ in 0..short(&read(stream, 3)?[1..]) {
            let area = read(stream, 12)?;
            let (x, y, width, height) =
                (short(&area), short(&area[2..]), short(&area[4..]), short(&area[6..]));
            let pixels = read(stream, width * height * 4)?;
            for (index, pixel) in pixels.chunks_exact(4).enumerate() {
                let at = ((y + index / width) * self.width + x + index % width) * 3;
                self.rgb[at..at + 3].copy_from_slice(&[pixel[2], pixel[1], pixel[0]]);
            }
            seen += width * height;
        }
        Ok(seen)
    }

    /// The colours inside an area.
    pub(crate) fn colours(&self, x: usize, y: usize, width: usize, height: usize) -> BTreeSet<[u8; 3]> {
        let rows = y..(y + height).min(self.height);
        let pixels = rows.flat_map(|row| {
            (x..(x + width).min(self.width)).map(move |column| (row * self.width + column) * 3)
        });
        pixels.map(|at| [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]).collect()
    }

    /// Keeps the frame as a picture.
    pub(crate) fn save(&self, path: &Path) {
        let file = std::fs::File::create(path).expect("the picture's folder is there");
        let side = |length: usize| u32::try_from(length).expect("a screen's side is 16 bits");
        let mut encoder = png::Encoder::new(file, side(self.width), side(self.height));
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().expect("a picture's head");
        writer.write_image_data(&self.rgb).expect("a picture's pixels");
    }
}

fn read(stream: &mut TcpStream, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn short(bytes: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn long(bytes: &[u8]) -> usize {
    short(bytes) << 16 | short(&bytes[2..])
}
