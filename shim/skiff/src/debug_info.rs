//! Leaves out debug information (DWARF) that is damaged, or that would take long to read. The engine reads it anew for each call of a
//! backtrace, in the container's memory and on a stack of bounded size. Its size does not bound that, because units may share
//! tables and calls may be nested: what is counted here is the work of `addr2line`, with which wasmtime reads it.

use std::borrow::Cow;

use gimli::{AttributeValue, Dwarf, EndianSlice, LittleEndian, Reader, Section as _, SectionId, Unit, UnitHeader};
use wasmparser::{Parser, Payload};

/// How the names of the sections begin.
const PREFIX: &str = ".debug_";
/// The most work that the debug information of one module may be, in attributes, bytes of line programs, ranges and the like.
const WORK_MAX: usize = 2 << 20;
/// How deep entries may be nested: `addr2line` descends with a function that calls itself.
const DEPTH_MAX: isize = 128;
/// The most attributes of one kind of entry.
const ATTRIBUTES_MAX: usize = 64;
/// The longest name or path, in bytes, and how many bytes of one are as much work as an attribute.
const TEXT_BYTES_MAX: usize = 16 << 10;
const TEXT_BYTES_PER_WORK: usize = 16;
/// What it takes to find the name of an entry that refers to others.
const REFERENCE_WORK: usize = 64;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// A section with debug information.
struct Section<'a> {
    name: &'a str,
    /// Where its name is in the binary.
    name_offset: usize,
    data: &'a [u8],
}

/// Work that may still be done. Its functions return `None` for what is too much or damaged.
struct Work(usize);

/// The wasm binary `bytes` without the debug information of those of its modules for which it is damaged or too much. What is left out is
/// renamed: all offsets stay as they are.
pub(crate) fn bounded(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut bounded = Cow::Borrowed(bytes);
    for section in modules(bytes).iter().filter(|module| !is_bounded(module)).flatten() {
        if let Some(byte) = bounded.to_mut().get_mut(section.name_offset) {
            *byte = b'_';
        }
    }
    bounded
}

/// The debug sections of each module, as far as the binary can be read: the compiler says what is wrong with the rest.
fn modules(bytes: &[u8]) -> Vec<Vec<Section<'_>>> {
    let (mut ended, mut open) = (Vec::new(), Vec::new());
    for payload in Parser::new(0).parse_all(bytes).map_while(Result::ok) {
        match payload {
            Payload::Version { .. } => open.push(Vec::new()),
            Payload::CustomSection(section) if section.name().starts_with(PREFIX) => {
                let (name, data) = (section.name(), section.data());
                let section = Section { name, name_offset: section.data_offset() - name.len(), data };
                if let Some(module) = open.last_mut() {
                    Vec::push(module, section);
                }
            }
            Payload::End(_) => ended.extend(open.pop()),
            _ => {}
        }
    }
    ended
}

fn is_bounded(module: &[Section<'_>]) -> bool {
    // Of sections with one name wasmtime takes the last one.
    let data = |id: SectionId| module.iter().rfind(|section| section.name == id.name()).map_or(&[][..], |s| s.data);
    let dwarf = Dwarf::load(|id| Ok::<_, gimli::Error>(EndianSlice::new(data(id), LittleEndian)));
    dwarf.is_ok_and(|dwarf| Work(WORK_MAX).module(&dwarf).is_some())
}

impl Work {
    fn spend(&mut self, work: usize) -> Option<()> {
        self.0 = self.0.checked_sub(work)?;
        Some(())
    }

    fn module(&mut self, dwarf: &Dwarf<Bytes<'_>>) -> Option<()> {
        let mut units = dwarf.units();
        while let Some(header) = units.next().ok()? {
            self.abbreviations(dwarf, &header)?;
            let unit = dwarf.unit(header).ok()?;
            self.lines(dwarf, &unit)?;
            self.entries(dwarf, &unit)?;
        }
        Some(())
    }

    /// The kinds of entries of a unit: they are read before anything else of it, and others may have the same.
    fn abbreviations(&mut self, dwarf: &Dwarf<Bytes<'_>>, header: &UnitHeader<Bytes<'_>>) -> Option<()> {
        let mut input = *dwarf.debug_abbrev.reader();
        input.skip(header.debug_abbrev_offset().0).ok()?;
        while !input.is_empty() && input.read_uleb128().ok()? != 0 {
            let (_tag, _has_children) = (input.read_uleb128().ok()?, input.read_u8().ok()?);
            let attributes = attributes(&mut input)?;
            self.spend(1 + attributes)?;
        }
        Some(())
    }

    /// The lines of a unit, and the paths of its files.
    fn lines(&mut self, dwarf: &Dwarf<Bytes<'_>>, unit: &Unit<Bytes<'_>>) -> Option<()> {
        let Some(program) = &unit.line_program else { return Some(()) };
        let header = program.header();
        self.spend(header.raw_program_buf().len() + header.include_directories().len())?;
        let folder = unit.comp_dir.map(AttributeValue::String);
        for file in header.file_names() {
            for part in [folder, file.directory(header), Some(file.path_name())].into_iter().flatten() {
                self.text(dwarf, unit, part)?;
            }
        }
        Some(())
    }

    fn entries(&mut self, dwarf: &Dwarf<Bytes<'_>>, unit: &Unit<Bytes<'_>>) -> Option<()> {
        let mut entries = unit.entries_raw(None).ok()?;
        while !entries.is_empty() {
            // Below zero the depth of what follows would not be that from its own function on.
            let is_nested_well = (0..=DEPTH_MAX).contains(&entries.next_depth());
            let abbreviation = entries.read_abbreviation().ok().filter(|_| is_nested_well)?;
            let attributes = abbreviation.map_or(&[][..], gimli::Abbreviation::attributes);
            self.spend(1 + attributes.len())?;
            for attribute in attributes {
                let attribute = entries.read_attribute(*attribute).ok()?;
                self.attribute(dwarf, unit, attribute.name(), attribute.value())?;
            }
        }
        Some(())
    }

    fn attribute(
        &mut self,
        dwarf: &Dwarf<Bytes<'_>>,
        unit: &Unit<Bytes<'_>>,
        name: gimli::DwAt,
        value: AttributeValue<Bytes<'_>>,
    ) -> Option<()> {
        match (name, value) {
            (gimli::DW_AT_ranges, value) => self.ranges(dwarf, unit, value),
            (gimli::DW_AT_abstract_origin | gimli::DW_AT_specification, _) => self.spend(REFERENCE_WORK),
            (
                gimli::DW_AT_name | gimli::DW_AT_linkage_name | gimli::DW_AT_MIPS_linkage_name | gimli::DW_AT_comp_dir,
                value,
            )
            | (_, value @ AttributeValue::String(_)) => self.text(dwarf, unit, value),
            _ => Some(()),
        }
    }

    /// A list of ranges: many entries may have the same.
    fn ranges(
        &mut self,
        dwarf: &Dwarf<Bytes<'_>>,
        unit: &Unit<Bytes<'_>>,
        value: AttributeValue<Bytes<'_>>,
    ) -> Option<()> {
        let Some(offset) = dwarf.attr_ranges_offset(unit, value).ok()? else { return Some(()) };
        let mut ranges = dwarf.raw_ranges(unit, offset).ok()?;
        while ranges.next().ok()?.is_some() {
            self.spend(1)?;
        }
        Some(())
    }

    fn text(
        &mut self,
        dwarf: &Dwarf<Bytes<'_>>,
        unit: &Unit<Bytes<'_>>,
        value: AttributeValue<Bytes<'_>>,
    ) -> Option<()> {
        // What is no text takes no time.
        let bytes = dwarf.attr_string(unit, value).map_or(0, |text| text.len());
        (bytes <= TEXT_BYTES_MAX).then_some(())?;
        self.spend(1 + bytes / TEXT_BYTES_PER_WORK)
    }
}

/// Reads the attributes of a kind of entry, and returns how many there are.
fn attributes(input: &mut Bytes<'_>) -> Option<usize> {
    for count in 0..=ATTRIBUTES_MAX {
        let (name, form) = (input.read_uleb128().ok()?, input.read_uleb128().ok()?);
        if (name, form) == (0, 0) {
            return Some(count);
        }
        if form == u64::from(gimli::DW_FORM_implicit_const.0) {
            input.read_sleb128().ok()?;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit and a function in it that inlines calls, each in the one before.
    const ABBREVIATIONS: &[u8] = &[1, 0x11, 1, 0, 0, 2, 0x2e, 1, 0x11, 1, 0x12, 6, 0, 0, 3, 0x1d, 1, 0, 0, 0];

    /// A unit of DWARF 4 with these entries.
    fn unit(entries: &[u8]) -> Vec<u8> {
        let length = u32::try_from(entries.len() + 7).unwrap().to_le_bytes();
        [&length[..], &[4, 0, 0, 0, 0, 0, 4], entries].concat()
    }

    fn nested(depth: usize) -> Vec<u8> {
        let function = [2, 0, 0, 0, 0, 0xff, 0, 0, 0];
        unit(&[&[1][..], &function, &vec![3; depth], &vec![0; depth + 2]].concat())
    }

    fn module(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let escape = |data: &[u8]| data.iter().map(|byte| format!("\\{byte:02x}")).collect::<String>();
        let customs: String =
            sections.iter().map(|(name, data)| format!("(@custom \"{name}\" \"{}\")", escape(data))).collect();
        wat::parse_str(format!("(module {customs})")).unwrap()
    }

    fn is_kept(sections: &[(&str, &[u8])]) -> bool {
        let bytes = module(sections);
        let bounded = bounded(&bytes);
        let names = |bytes: &[u8]| bytes.windows(PREFIX.len()).filter(|part| *part == PREFIX.as_bytes()).count();
        assert_eq!(bounded.len(), bytes.len());
        assert!([0, names(&bytes)].contains(&names(&bounded)), "all of it or nothing");
        names(&bounded) > 0
    }

    #[test]
    fn debug_information_is_kept_unless_it_is_damaged_or_too_much() {
        let long_name = [&[1, 0x11, 0, 0x03, 0x08, 0, 0, 0][..]].concat();
        let named = |bytes| unit(&[&[1][..], &vec![b'x'; bytes], &[0]].concat());
        let kinds: Vec<u8> = (1..=100).flat_map(|code| [code, 0x11, 0, 0, 0]).chain([0]).collect();
        let many_attributes = [&[1, 0x11, 0][..], &[0x03, 0x0b].repeat(ATTRIBUTES_MAX + 1), &[0, 0, 0]].concat();
        for (what, abbreviations, info, expected) in [
            ("a function", ABBREVIATIONS, nested(0), true),
            ("calls in calls", ABBREVIATIONS, nested(100), true),
            ("calls in calls without an end", ABBREVIATIONS, nested(100_000), false),
            ("ends without a beginning", ABBREVIATIONS, unit(&[1, 0, 0, 0, 0, 1, 0]), false),
            ("a unit that is cut off", ABBREVIATIONS, nested(3)[..20].to_vec(), false),
            ("a kind of entry that there is not", ABBREVIATIONS, unit(&[9]), false),
            ("a name", &long_name, named(TEXT_BYTES_MAX), true),
            ("a long name", &long_name, named(TEXT_BYTES_MAX + 1), false),
            ("few units with the same kinds", &kinds, unit(&[1]).repeat(1000), true),
            ("many units with the same kinds", &kinds, unit(&[1]).repeat(100_000), false),
            ("a kind with many attributes", &many_attributes, unit(&[]), false),
        ] {
            assert_eq!(is_kept(&[(".debug_abbrev", abbreviations), (".debug_info", &info)]), expected, "{what}");
        }
    }

    #[test]
    fn lists_that_entries_share_are_counted_for_each() {
        let abbreviations = [1, 0x11, 1, 0, 0, 2, 0x2e, 0, 0x55, 0x17, 0, 0, 0];
        let ranges = [[1, 0, 0, 0, 2, 0, 0, 0].repeat(5000), vec![0; 8]].concat();
        for (entries, expected) in [(100, true), (5000, false)] {
            let info = unit(&[&[1][..], &[2, 0, 0, 0, 0].repeat(entries), &[0]].concat());
            let sections: [(&str, &[u8]); 3] =
                [(".debug_abbrev", &abbreviations), (".debug_info", &info), (".debug_ranges", &ranges)];
            assert_eq!(is_kept(&sections), expected, "{entries}");
        }
    }

    #[test]
    fn of_each_module_of_a_component_its_own_debug_information_is_left_out() {
        let module = |depth: usize| {
            let info: String = nested(depth).iter().map(|byte| format!("\\{byte:02x}")).collect();
            let kinds: String = ABBREVIATIONS.iter().map(|byte| format!("\\{byte:02x}")).collect();
            format!("(core module (@custom \".debug_abbrev\" \"{kinds}\") (@custom \".debug_info\" \"{info}\"))")
        };
        let bytes = wat::parse_str(format!("(component {} {})", module(1), module(1000))).unwrap();
        let bounded = bounded(&bytes);
        let kept: Vec<bool> = modules(&bounded).iter().map(|module| !module.is_empty()).collect();
        assert_eq!(kept, [true, false, false], "two modules, and the component itself");
    }
}
