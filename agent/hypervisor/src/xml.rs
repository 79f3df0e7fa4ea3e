//! Owns a small tree of XML elements: enough of the language to read and edit what libvirt writes.
//!
//! Promises: text and attributes are unescaped in the tree and escaped when written; a document type
//! declaration is refused. Comments are dropped. Must not do: know what the elements mean.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer};

/// Why a text is not a usable description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// Not well-formed.
    #[error("not well-formed XML: {0}")]
    Malformed(String),
    /// Well-formed, and lacks what is needed.
    #[error("no usable {0} in the description")]
    Lacks(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) children: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Element(Element),
    Text(String),
}

impl Element {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub(crate) fn with(mut self, attribute: &str, value: &str) -> Self {
        self.set(attribute, value);
        self
    }

    pub(crate) fn text_child(name: &str, text: &str) -> Self {
        Self { name: name.to_owned(), attributes: Vec::new(), children: vec![Node::Text(text.to_owned())] }
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.attributes.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.attributes.push((name.to_owned(), value.to_owned())),
        }
    }

    pub(crate) fn elements(&self) -> impl Iterator<Item = &Element> {
        self.children.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    pub(crate) fn elements_mut(&mut self) -> impl Iterator<Item = &mut Element> {
        self.children.iter_mut().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.elements().filter(move |element| element.name == name)
    }

    pub(crate) fn child(&self, name: &str) -> Option<&Element> {
        self.elements().find(|element| element.name == name)
    }

    pub(crate) fn child_mut(&mut self, name: &str) -> Option<&mut Element> {
        self.elements_mut().find(|element| element.name == name)
    }

    pub(crate) fn path(&self, path: &[&str]) -> Option<&Element> {
        path.iter().try_fold(self, |element, name| element.child(name))
    }

    pub(crate) fn text(&self) -> String {
        self.children
            .iter()
            .filter_map(|node| match node {
                Node::Text(text) => Some(text.as_str()),
                Node::Element(_) => None,
            })
            .collect::<String>()
            .trim()
            .to_owned()
    }

    /// Puts `child` in the place of the first element of its name, or at the end.
    pub(crate) fn put(&mut self, child: Element) {
        match self.child_mut(&child.name) {
            Some(old) => *old = child,
            None => self.children.push(Node::Element(child)),
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.children.retain(|node| !matches!(node, Node::Element(element) if element.name == name));
    }

    /// Changes every attribute value and text below.
    pub(crate) fn for_each_value(&mut self, change: &impl Fn(&mut String)) {
        for (_, value) in &mut self.attributes {
            change(value);
        }
        for node in &mut self.children {
            match node {
                Node::Text(text) => change(text),
                Node::Element(element) => element.for_each_value(change),
            }
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, XmlError> {
        let malformed = |error: &dyn std::fmt::Display| XmlError::Malformed(error.to_string());
        let mut reader = Reader::from_str(text);
        // The outermost entry collects the document itself; the root is its only element.
        let mut open = vec![Self::default()];
        let inside = |open: &mut Vec<Self>, node: Node| {
            if let Some(parent) = open.last_mut() {
                parent.children.push(node);
            }
        };
        loop {
            match reader.read_event().map_err(|e| malformed(&e))? {
                Event::Start(start) => open.push(opened(&start)?),
                Event::Empty(start) => inside(&mut open, Node::Element(opened(&start)?)),
                Event::End(_) => {
                    let done = open.pop().ok_or(XmlError::Lacks("root element"))?;
                    inside(&mut open, Node::Element(done));
                }
                Event::Text(text) => {
                    let text = text.xml10_content().map_err(|e| malformed(&e))?;
                    inside(&mut open, Node::Text(text.into_owned()));
                }
                Event::CData(text) => {
                    let text = text.decode().map_err(|e| malformed(&e))?;
                    inside(&mut open, Node::Text(text.into_owned()));
                }
                Event::GeneralRef(entity) => {
                    let name = entity.decode().map_err(|e| malformed(&e))?;
                    let text = quick_xml::escape::unescape(&format!("&{name};"))
                        .map_err(|e| malformed(&e))?
                        .into_owned();
                    inside(&mut open, Node::Text(text));
                }
                Event::DocType(_) => {
                    return Err(XmlError::Malformed("a document type declaration".to_owned()));
                }
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::Eof => break,
            }
        }
        let [document] = open.as_slice() else {
            return Err(XmlError::Malformed("an element is not closed".to_owned()));
        };
        let mut roots = document.elements();
        match (roots.next(), roots.next()) {
            (Some(root), None) => Ok(root.clone()),
            _ => Err(XmlError::Lacks("root element")),
        }
    }

    pub(crate) fn write(&self) -> Result<String, XmlError> {
        let mut writer = Writer::new(Vec::new());
        self.write_to(&mut writer).map_err(|e| XmlError::Malformed(e.to_string()))?;
        String::from_utf8(writer.into_inner()).map_err(|e| XmlError::Malformed(e.to_string()))
    }

    fn write_to(&self, writer: &mut Writer<Vec<u8>>) -> std::io::Result<()> {
        let mut start = BytesStart::new(self.name.as_str());
        for (key, value) in &self.attributes {
            start.push_attribute((key.as_str(), value.as_str()));
        }
        if self.children.is_empty() {
            return writer.write_event(Event::Empty(start));
        }
        writer.write_event(Event::Start(start))?;
        for node in &self.children {
            match node {
                Node::Text(text) => writer.write_event(Event::Text(BytesText::new(text)))?,
                Node::Element(element) => element.write_to(writer)?,
            }
        }
        writer.write_event(Event::End(BytesEnd::new(self.name.as_str())))
    }
}

fn opened(start: &BytesStart<'_>) -> Result<Element, XmlError> {
    let malformed = |error: &dyn std::fmt::Display| XmlError::Malformed(error.to_string());
    let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut element = Element::new(&name(start.name().as_ref()));
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|e| malformed(&e))?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|e| malformed(&e))?;
        element.attributes.push((name(attribute.key.as_ref()), value.into_owned()));
    }
    Ok(element)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_parsed_is_written_with_the_same_meaning() {
        let text = "<a x='1 &lt; 2 &quot;'><!-- gone --><b/>t &amp; &#65;<c:d xmlns:c='u'>e</c:d><![CDATA[<raw>]]></a>";
        let tree = Element::parse(text).unwrap();
        assert_eq!(tree.attribute("x"), Some("1 < 2 \""));
        assert_eq!(tree.text(), "t & A<raw>");
        let again = Element::parse(&tree.write().unwrap()).unwrap();
        assert_eq!(again.text(), tree.text());
        assert_eq!(again.child("c:d"), tree.child("c:d"));
        assert_eq!(again.attribute("x"), tree.attribute("x"));
    }

    #[test]
    fn what_is_not_one_whole_element_is_refused() {
        for bad in [
            "",
            "text",
            "<a>",
            "<a></b>",
            "<a/><b/>",
            "<a x=1/>",
            "<!DOCTYPE a [<!ENTITY e 'x'>]><a>&e;</a>",
            "<a>&nope;</a>",
        ] {
            assert!(Element::parse(bad).is_err(), "{bad}");
        }
    }
}
