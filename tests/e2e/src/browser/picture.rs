//! Owns what a test asks of a screenshot: is anything on it, which colours, and how far it is from another.
//!
//! Promises: pure functions of the pixels. Must not know what the page is.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Red, green, blue.
pub type Colour = [u8; 3];

/// Difference of a channel that no eye sees; lossy encodings stay below.
const SAME: u8 = 24;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The file cannot be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("writing {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The bytes are no PNG.
    #[error("decoding a PNG")]
    Decode(#[from] png::DecodingError),
    /// A PNG of a kind that no browser writes.
    #[error("a PNG with {0:?} pixels: only 8 bits of RGB, RGBA or grey are understood")]
    Kind(png::ColorType),
}

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    pixels: Vec<Colour>,
}

impl Picture {
    /// Reads a PNG file.
    pub fn read(path: &Path) -> Result<Self, PictureError> {
        let png = fs::read(path).map_err(|source| PictureError::Read { path: path.to_owned(), source })?;
        Self::decode(&png)
    }

    /// Decodes a PNG.
    pub fn decode(png: &[u8]) -> Result<Self, PictureError> {
        let mut decoder = png::Decoder::new(Cursor::new(png));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info()?;
        let mut buffer = vec![0; reader.output_buffer_size().unwrap_or_default()];
        let info = reader.next_frame(&mut buffer)?;
        let bytes = &buffer[..info.buffer_size()];
        let pixels = match info.color_type {
            png::ColorType::Rgb => bytes.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect(),
            png::ColorType::Rgba => bytes.chunks_exact(4).map(|p| [p[0], p[1], p[2]]).collect(),
            png::ColorType::Grayscale => bytes.iter().map(|&p| [p; 3]).collect(),
            png::ColorType::GrayscaleAlpha => bytes.chunks_exact(2).map(|p| [p[0]; 3]).collect(),
            png::ColorType::Indexed => return Err(PictureError::Kind(info.color_type)),
        };
        Ok(Self { width: info.width as usize, pixels })
    }

    /// Width and height.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.pixels.len().checked_div(self.width).unwrap_or(0))
    }

    /// The pixel at `x` from the left and `y` from the top; `None` outside.
    #[must_use]
    pub fn pixel(&self, x: usize, y: usize) -> Option<Colour> {
        (x < self.width).then(|| self.pixels.get(y * self.width + x).copied()).flatten()
    }

    /// The part that begins `left` from the left and `top` from the top; what lies outside is left out.
    #[must_use]
    pub fn part(&self, (left, top): (usize, usize), (width, height): (usize, usize)) -> Self {
        let (all, rows) = self.size();
        let (right, bottom) = ((left + width).min(all), (top + height).min(rows));
        let left = left.min(right);
        let row = |y: usize| &self.pixels[y * all + left..y * all + right];
        Self { width: right - left, pixels: (top..bottom).flat_map(row).copied().collect() }
    }

    /// Share of the pixels, 0 to 1, that look like `colour`.
    #[must_use]
    pub fn share_of(&self, colour: Colour) -> f64 {
        share(self.pixels.iter().filter(|&&pixel| alike(pixel, colour)).count(), self.pixels.len())
    }

    /// Whether hardly anything (less than one pixel in 200) is brighter than near black.
    #[must_use]
    pub fn is_black(&self) -> bool {
        1.0 - self.share_of([0; 3]) < 0.005
    }

    /// Share of the pixels, 0 to 1, that look different in `other`; 1 when the sizes differ.
    #[must_use]
    pub fn difference(&self, other: &Self) -> f64 {
        if self.size() != other.size() {
            return 1.0;
        }
        let pairs = self.pixels.iter().zip(&other.pixels);
        share(pairs.filter(|&(&one, &two)| !alike(one, two)).count(), self.pixels.len())
    }
}

fn alike(one: Colour, two: Colour) -> bool {
    one.iter().zip(two).all(|(a, b)| a.abs_diff(b) <= SAME)
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(width: u32, kind: png::ColorType, bytes: &[u8]) -> Vec<u8> {
        let channels = u32::try_from(kind.samples()).unwrap();
        let height = u32::try_from(bytes.len()).unwrap() / width / channels;
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, width, height);
        encoder.set_color(kind);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header().unwrap().write_image_data(bytes).unwrap();
        png
    }

    #[test]
    fn pixels_are_where_they_were_drawn() {
        let bytes = [10, 20, 30, 255, 200, 100, 50, 255, 0, 0, 0, 255, 255, 255, 255, 255];
        let picture = Picture::decode(&encoded(2, png::ColorType::Rgba, &bytes)).unwrap();
        assert_eq!(picture.size(), (2, 2));
        assert_eq!(picture.pixel(1, 0), Some([200, 100, 50]));
        assert_eq!(picture.pixel(0, 1), Some([0, 0, 0]));
        assert_eq!((picture.pixel(2, 0), picture.pixel(0, 2)), (None, None));
        assert!((picture.share_of([250, 250, 250]) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn black_is_distinguished_from_a_dark_picture_with_something_on_it() {
        let mut bytes = vec![3; 100 * 100 * 3];
        assert!(Picture::decode(&encoded(100, png::ColorType::Rgb, &bytes)).unwrap().is_black());
        bytes[..300].fill(200);
        assert!(!Picture::decode(&encoded(100, png::ColorType::Rgb, &bytes)).unwrap().is_black());
    }

    #[test]
    fn difference_counts_changed_pixels_and_forgives_lossy_encoding() {
        let picture = |bytes: &[u8]| Picture::decode(&encoded(2, png::ColorType::Grayscale, bytes)).unwrap();
        let one = picture(&[10, 10, 10, 10]);
        assert!(one.difference(&picture(&[12, 9, 30, 10])) < 1e-9);
        assert!((one.difference(&picture(&[10, 10, 10, 99])) - 0.25).abs() < 1e-9);
        assert!((one.difference(&picture(&[10, 10])) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_part_ends_where_the_picture_does() {
        let bytes: Vec<u8> = (0..12).map(|n| n * 20).collect();
        let picture = Picture::decode(&encoded(4, png::ColorType::Grayscale, &bytes)).unwrap();
        let part = picture.part((1, 1), (2, 2));
        assert_eq!(
            (part.size(), part.pixel(0, 0), part.pixel(1, 1)),
            ((2, 2), Some([100; 3]), Some([200; 3]))
        );
        assert_eq!(picture.part((3, 2), (9, 9)).size(), (1, 1));
        assert_eq!(picture.part((9, 9), (1, 1)).size(), (0, 0));
    }

    #[test]
    fn what_is_no_png_is_refused() {
        assert!(matches!(Picture::decode(b"not a picture"), Err(PictureError::Decode(_))));
        let missing = Picture::read(Path::new("/nonexistent/picture.png"));
        assert!(matches!(missing, Err(PictureError::Read { .. })));
    }
}
