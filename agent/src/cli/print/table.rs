//! Owns columns: as wide as what is in them, whatever that is.
//!
//! Promises: the same on a terminal and in a pipe, so that scripts can rest on it: one line for each row, nothing cut off
//! or wrapped, two spaces at least between columns, nothing behind the last. Must not do: know what is shown.

use comfy_table::{CellAlignment, ContentArrangement, Table};

/// A column by its heading.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    /// Words.
    Left(&'static str),
    /// Figures.
    Right(&'static str),
}

/// The heading and a line for each row, none with its end.
pub(crate) fn lines(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| match column {
        Column::Left(heading) | Column::Right(heading) => *heading,
    }));
    for row in rows {
        // A line end within a cell would make two lines of one row.
        table.add_row(row.iter().map(|cell| cell.replace(['\r', '\n'], " ")));
    }
    for (column, made) in columns.iter().zip(table.column_iter_mut()) {
        made.set_padding((0, 2));
        made.set_cell_alignment(match column {
            Column::Left(_) => CellAlignment::Left,
            Column::Right(_) => CellAlignment::Right,
        });
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// The same as one text.
pub(crate) fn text(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    lines(columns, rows).into_iter().map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::Column::{Left, Right};
    use super::*;

    fn row(cells: [&str; 3]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    #[test]
    fn columns_are_as_wide_as_the_longest_name_and_stay_apart() {
        let long = "h".repeat(63);
        let printed = lines(
            &[Left("HOST"), Right("IDLE"), Left("WHY")],
            [row([&long, "1", ""]), row(["b", "1000", "most room\nof all"])],
        );
        assert_eq!(
            printed,
            [
                format!("{:63}  IDLE  WHY", "HOST"),
                format!("{long}     1"),
                format!("{:63}  1000  most room of all", "b"),
            ]
        );
        for line in &printed {
            assert_eq!(line.trim_end(), line);
        }
    }

    #[test]
    fn a_table_without_rows_is_its_heading() {
        assert_eq!(text(&[Left("HOST"), Right("IDLE")], []), "HOST  IDLE\n");
    }
}
